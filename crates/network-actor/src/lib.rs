//! network-actor
