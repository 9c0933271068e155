//! See `lifecycle_tests::fuzz::z9_life_with_faults`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z9_life_with_faults(bytes));
