//! Exchange of Router resources between nodes.
