//! resource-actors
