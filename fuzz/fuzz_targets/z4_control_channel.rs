//! See `lifecycle_tests::fuzz::z4_control_channel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z4_control_channel(bytes));
