//! See `lifecycle_tests::fuzz::z1_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z1_spec(bytes));
