//! What a publication says about itself, so that consumers can choose among several.

use bytes::BytesMut;

use super::varint::{self, Fields};

/// What the checks of a backend have found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It is not checked, or not yet. Chosen like a healthy one.
    #[default]
    Unknown,
    /// It works.
    Healthy,
    /// It does not: chosen only where there is nothing better.
    Unhealthy,
}

impl Health {
    /// The name in status, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }

    const fn to_wire(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Healthy => 1,
            Self::Unhealthy => 2,
        }
    }

    /// A number of a later version says nothing that could be acted upon.
    const fn from_wire(number: u64) -> Self {
        match number {
            1 => Self::Healthy,
            2 => Self::Unhealthy,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a publication wants to be chosen among others of the same service and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offer {
    /// Its share of the connections among equals; 0 takes none while another one can.
    pub weight: u16,
    /// Lower ones are used first; the others only when none of those is healthy.
    pub priority: u16,
    /// What its checks have found.
    pub health: Health,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            weight: 1,
            priority: 0,
            health: Health::Unknown,
        }
    }
}

impl Offer {
    /// Appends the fields, and nothing for the default: that is what a publication without them means.
    pub(super) fn encode(self, out: &mut BytesMut) {
        if self != Self::default() {
            varint::write(u64::from(self.weight), out);
            varint::write(u64::from(self.priority), out);
            varint::write(self.health.to_wire(), out);
        }
    }

    /// Reads what is there; `Err` names a field that cannot be read.
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, &'static str> {
        let default = Self::default();
        let mut next = |name, absent: u64| match fields.is_empty() {
            true => Ok(absent),
            false => fields.varint().ok_or(name),
        };
        let short = |number| u16::try_from(number).unwrap_or(u16::MAX);
        Ok(Self {
            weight: short(next("weight", default.weight.into())?),
            priority: short(next("priority", default.priority.into())?),
            health: Health::from_wire(next("health", default.health.to_wire())?),
        })
    }
}
