//! Connection ids that a restarted process still recognises as its own.

use std::hash::Hasher as _;

use quinn::{ConnectionId, ConnectionIdGenerator};
use siphasher::sip::SipHasher24;

/// Length of our connection ids in bytes: 5 random, 1 for the shard, 4 of a keyed tag.
pub(super) const CID_LEN: usize = 10;
const TAGGED: usize = 6;

/// Makes ids `random(5) | shard ^ mask(1) | tag(4)`.
///
/// The tag lets the endpoint tell its own ids from garbage without state, so that a stateless reset answers only
/// packets of connections that this router really had. The mask hides the shard from observers.
#[derive(Clone)]
pub(super) struct KeyedCids {
    pub(super) tag_key: [u8; 16],
    pub(super) mask_key: [u8; 16],
    pub(super) shard: u8,
}

impl KeyedCids {
    fn mask(&self, random: &[u8]) -> u8 {
        let mut hasher = SipHasher24::new_with_key(&self.mask_key);
        hasher.write(random);
        hasher.finish().to_le_bytes()[0]
    }

    fn tag(&self, tagged: &[u8]) -> [u8; 4] {
        let mut hasher = SipHasher24::new_with_key(&self.tag_key);
        hasher.write(tagged);
        let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
        [a, b, c, d]
    }
}

impl ConnectionIdGenerator for KeyedCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0u8; CID_LEN];
        rand::fill(&mut id[..TAGGED - 1]);
        id[TAGGED - 1] = self.shard ^ self.mask(&id[..TAGGED - 1]);
        let tag = self.tag(&id[..TAGGED]);
        id[TAGGED..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        // Any shard of this router is fine: a sibling's packet is steered, not dropped.
        if cid.len() == CID_LEN && cid[TAGGED..] == self.tag(&cid[..TAGGED]) {
            Ok(())
        } else {
            Err(quinn_proto::InvalidCid)
        }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cids(key: u8) -> KeyedCids {
        KeyedCids {
            tag_key: [key; 16],
            mask_key: [key + 1; 16],
            shard: 3,
        }
    }

    #[test]
    fn own_ids_are_known_to_a_generator_with_the_same_keys_only() {
        let id = cids(7).generate_cid();
        assert_eq!(id.len(), CID_LEN);
        assert!(cids(7).validate(&id).is_ok());
        assert!(cids(8).validate(&id).is_err());
        assert!(cids(7).validate(&ConnectionId::new(&[1, 2, 3])).is_err());
    }
}
