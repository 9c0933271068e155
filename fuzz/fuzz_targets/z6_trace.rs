//! See `lifecycle_tests::fuzz::z6_trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z6_trace(bytes));
