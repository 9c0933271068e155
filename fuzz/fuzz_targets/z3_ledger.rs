//! See `lifecycle_tests::fuzz::z3_ledger`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lifecycle_tests::fuzz::z3_ledger(bytes));
