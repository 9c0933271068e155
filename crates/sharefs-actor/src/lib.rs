//! sharefs-actor
