//! One end of a link: a network device whose packets come to this process.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;

/// `struct ifreq` of the kernel, as `TUNSETIFF` reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the device `name` in the namespace of the calling thread. It goes when the file is closed.
pub(super) fn open(name: &str) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("/dev/net/tun")?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
        rest: [0; 22],
    };
    anyhow::ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    set(&file, &mut request).with_context(|| format!("make the device {name}"))?;
    Ok(file)
}

#[allow(unsafe_code, reason = "no safe wrapper knows TUNSETIFF")]
fn set(file: &File, request: &mut Request) -> Result<(), Errno> {
    const { assert!(size_of::<Request>() == size_of::<libc::ifreq>()) };
    // SAFETY: the file is open for the whole call, and the request is a live `ifreq` of the size that the kernel uses.
    let done = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETIFF,
            std::ptr::from_mut(request),
        )
    };
    Errno::result(done).map(drop)
}
