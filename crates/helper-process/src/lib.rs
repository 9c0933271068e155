//! helper-process
