//! See `lifecycle_tests::fuzz::z2_configuration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z2_configuration(bytes));
