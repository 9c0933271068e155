//! See `lifecycle_tests::fuzz::z5_agent_replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z5_agent_replies(bytes));
