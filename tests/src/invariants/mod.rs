//! What must hold after every message.
