//! The little that a link must know of an Ethernet frame.

const ETHERNET: usize = 14;
const UDP: u8 = 17;
/// Neighbour discovery, and the option header in front of multicast reports.
const ICMPV6: [u8; 2] = [58, 0];

/// The length of the IP packet in a frame; `None` for what makes the network work (ARP, neighbour discovery) and is spared.
pub(super) fn ip_length(frame: &[u8]) -> Option<usize> {
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => Some(frame.len() - ETHERNET),
        [0x86, 0xDD] if !ICMPV6.contains(frame.get(ETHERNET + 6)?) => Some(frame.len() - ETHERNET),
        _ => None,
    }
}

/// Turns a bit of the payload, `part` of the way into it; with `unseen` the UDP checksum is made to fit.
pub(super) fn damage(frame: &mut [u8], part: f64, unseen: bool) {
    let Some((udp, payload)) = payload(frame) else {
        return;
    };
    let place = payload + ((frame.len() - payload) as f64 * part) as usize;
    // Checksums are of 16-bit words from the UDP header on; a last odd byte is padded with 0.
    let start = place - (place - udp) % 2;
    let word = |frame: &[u8]| {
        u16::from_be_bytes([frame[start], frame.get(start + 1).copied().unwrap_or(0)])
    };
    let before = word(frame);
    frame[place] ^= 1 << (place % 8);
    let sum = u16::from_be_bytes([frame[udp + 6], frame[udp + 7]]);
    if unseen && sum != 0 {
        // RFC 1624: the checksum follows a changed word.
        let mut fitted = u32::from(!sum) + u32::from(!before) + u32::from(word(frame));
        while fitted > 0xFFFF {
            fitted = (fitted & 0xFFFF) + (fitted >> 16);
        }
        let fitted = match !(fitted as u16) {
            0 => 0xFFFF,
            other => other,
        };
        frame[udp + 6..udp + 8].copy_from_slice(&fitted.to_be_bytes());
    }
}

/// Where the UDP header begins and where the payload does; `None` for anything else.
fn payload(frame: &[u8]) -> Option<(usize, usize)> {
    let udp = match frame.get(12..ETHERNET)? {
        [0x08, 0x00] if *frame.get(ETHERNET + 9)? == UDP => {
            ETHERNET + usize::from(frame[ETHERNET] & 0x0F) * 4
        }
        [0x86, 0xDD] if *frame.get(ETHERNET + 6)? == UDP => ETHERNET + 40,
        _ => return None,
    };
    (frame.len() > udp + 8).then_some((udp, udp + 8))
}
