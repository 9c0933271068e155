//! cgroup-actor
