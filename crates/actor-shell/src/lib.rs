//! actor-shell
