//! Rows that tell whether they are what was written: a disk may give back other bits than it was given, and SQLite believes it.
//!
//! Behind the bytes of an object, and behind the hash of a token's secret, stands a checksum of them and of what else the row says, so
//! bits that flip anywhere in the row are found, and so are rows that got mixed up. PostgreSQL has checksums of its own.

use bytes::Bytes;
use crc::{CRC_64_XZ, Crc, Table};
use sqlx::Error;

use super::EventKind;
use crate::api::Revision;

static SUM: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

/// Bytes of the checksum.
pub(super) const LEN: usize = 8;

/// What an object is sealed with: where it stands, and what the row says beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seal<'a> {
    pub(super) place: Place,
    pub(super) revision: Revision,
    pub(super) resource: &'a str,
    pub(super) name: &'a str,
}

/// Where an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the table of objects.
    Object,
    /// In an event of this kind, which knows what was before or does not.
    Event(EventKind, bool),
    /// In an event, as what was before.
    Previous,
}

/// The row is not what was written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{place:?} {resource} {name:?} of revision {revision} does not match its checksum: the disk gave back other bits than it was given"
)]
struct Damaged {
    place: Place,
    revision: Revision,
    resource: String,
    name: String,
}

impl Seal<'_> {
    /// The object with its checksum.
    pub(super) fn put(self, object: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(object.len() + LEN);
        sealed.extend_from_slice(object);
        sealed.extend_from_slice(&self.sum(object));
        sealed
    }

    /// The object, if it is what was written.
    ///
    /// # Errors
    /// One that [`is_damage`].
    pub(super) fn open(self, mut sealed: Bytes) -> Result<Bytes, Error> {
        let sum = sealed.split_off(sealed.len().saturating_sub(LEN));
        if sum[..] == self.sum(&sealed) {
            return Ok(sealed);
        }
        Err(Error::Decode(Box::new(Damaged {
            place: self.place,
            revision: self.revision,
            resource: self.resource.into(),
            name: self.name.into(),
        })))
    }

    fn sum(self, object: &[u8]) -> [u8; LEN] {
        let place = match self.place {
            Place::Object => 0,
            Place::Previous => 1,
            Place::Event(kind, previous) => {
                2 + 2 * kind.column().to_le_bytes()[0] + u8::from(previous)
            }
        };
        sum(&[
            object,
            &[place],
            &self.revision.0.to_le_bytes(),
            self.resource.as_bytes(),
            // Lies in neither: what is one's end is not the other's beginning.
            &[0],
            self.name.as_bytes(),
        ])
    }
}

/// The checksum of these parts of a row.
pub(super) fn sum(parts: &[&[u8]]) -> [u8; LEN] {
    let mut sum = SUM.digest();
    for part in parts {
        sum.update(part);
    }
    sum.finalize().to_le_bytes()
}

/// Whether a row could not be understood: what is written here can be.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Decode(_) | Error::ColumnDecode { .. })
}
