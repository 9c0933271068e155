//! What an actor shows to those who look from outside.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an actor has published last, for readers on any thread. Clones show the same.
///
/// It is there to be read: a change wakes nobody. Its lock is held for a look, or for a copy.
#[derive(Debug, Default)]
pub struct Published<T>(Arc<Mutex<T>>);

impl<T> Published<T> {
    /// Looks at it. Whoever looks keeps the actor from publishing, so copy what takes longer.
    pub fn borrow(&self) -> MutexGuard<'_, T> {
        // An actor that panics while it publishes has died, and its sandbox fails over that.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Published<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
