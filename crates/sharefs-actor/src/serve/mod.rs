//! How each message is served.

mod set_up;
mod share;
mod undo;
