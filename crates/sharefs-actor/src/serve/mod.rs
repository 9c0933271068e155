//! How each message is served.

mod adopt;
mod set_up;
mod share;
mod undo;
