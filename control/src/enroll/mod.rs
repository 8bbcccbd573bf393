//! Handing out identities.
