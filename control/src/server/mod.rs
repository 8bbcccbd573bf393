//! The Kubernetes-shaped API over the store.
