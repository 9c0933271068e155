//! device-actor
