//! From a Router resource to what the fabric serves, and back to its status.
