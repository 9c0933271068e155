//! What a pod's network costs at least: the system calls alone, without a ledger, an actor or a
//! thought. It knows beforehand what it will be answered.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use rustix::fs::{Mode, OFlags};

nix::ioctl_readwrite_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

const TAP: &str = "tap0_kata";
/// `NLM_F_REQUEST | NLM_F_ACK`; `NLM_F_REQUEST` with `NLM_F_CREATE | NLM_F_EXCL`, and both.
const ACK: u16 = 0x5;
const NEW: u16 = 0x601;
const NEW_ACK: u16 = 0x605;
const DUMP: u16 = 0x301;
/// `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
/// `IFLA_EXT_MASK` and its `RTEXT_FILTER_SKIP_STATS`.
const IFLA_EXT_MASK: u16 = 29;
const SKIP_STATS: u32 = 8;
const INGRESS: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;

/// One netlink message.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        Self(bytes).sized()
    }

    fn sized(mut self) -> Self {
        let length = u32::try_from(self.0.len()).unwrap_or(0);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self.sized()
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(0);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// `struct tcmsg`.
fn traffic(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), handle.to_ne_bytes(), parent.to_ne_bytes(), info.to_ne_bytes()].concat()
}

fn ingress(kind: u16, flags: u16, index: u32) -> Message {
    Message::new(kind, flags, &traffic(index, INGRESS, INGRESS_PARENT, 0)).with(1, b"ingress\0")
}

/// A `u32` filter that matches all and redirects to `to`.
fn redirect(flags: u16, from: u32, to: u32) -> Message {
    // struct tc_u32_sel with one key that matches everything.
    let mut selector = vec![0; 32];
    (selector[0], selector[2]) = (1, 1);
    // struct tc_mirred: TC_ACT_STOLEN, TCA_EGRESS_REDIR.
    let words = [0, 0, 4, 0, 0, 1, to];
    let mirred: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let action = [attribute(1, b"mirred\0"), attribute(2, &attribute(2, &mirred))].concat();
    let options = [attribute(5, &selector), attribute(7, &attribute(1, &action))].concat();
    let every_protocol = (0x5241 << 16) | u32::from(0x0003_u16.to_be());
    Message::new(RTM_NEWTFILTER, flags, &traffic(from, 0, INGRESS, every_protocol)).with(1, b"u32\0").with(2, &options)
}

/// Prepared messages for one pod.
pub(crate) struct Floor {
    home: OwnedFd,
    link: u32,
    dumps: Vec<Message>,
    dress: Message,
    redirects: Vec<u8>,
    /// The index that the tap must get.
    tap: u32,
}

/// What a set-up leaves, to take it away again.
pub(crate) struct Up {
    socket: OwnedFd,
    _tun: OwnedFd,
    tap: u32,
}

impl Floor {
    /// For a pod whose link is `link` and whose next link will get the index `tap`.
    pub(crate) fn new(link_index: u32, tap: u32) -> Result<Self, String> {
        let home = open("/proc/thread-self/ns/net")?;
        let body = |size| vec![0; size];
        let links = Message::new(RTM_GETLINK, DUMP, &body(16)).with(IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
        let others = [(RTM_GETADDR, 8), (RTM_GETROUTE, 12), (RTM_GETNEIGH, 12), (RTM_GETQDISC, 20)];
        let others = others.map(|(kind, size)| Message::new(kind, DUMP, &body(size)));
        let dress = Message::new(RTM_NEWLINK, ACK, &link(0, 1))
            .with(3, format!("{TAP}\0").as_bytes())
            .with(4, &1500u32.to_ne_bytes())
            .with(20, b"resource-actors:floor\0");
        let redirects = [
            ingress(RTM_NEWQDISC, NEW, link_index),
            ingress(RTM_NEWQDISC, NEW, tap),
            redirect(NEW, link_index, tap),
            redirect(NEW_ACK, tap, link_index),
        ];
        Ok(Self {
            home,
            link: link_index,
            dumps: [links].into_iter().chain(others).collect(),
            dress,
            redirects: redirects.into_iter().flat_map(|message| message.0).collect(),
            tap,
        })
    }

    /// Sets the network up with nothing but system calls.
    pub(crate) fn set_up(&self, namespace: &Path) -> Result<Up, String> {
        let mut buffer = [0; 32 * 1024];
        let pod = open(&namespace.display().to_string())?;
        setns(&pod, CloneFlags::CLONE_NEWNET).map_err(|errno| format!("setns: {errno}"))?;
        let socket = netlink()?;
        for dump in &self.dumps {
            transmit(&socket, &dump.0)?;
            while !is_done(receive(&socket, &mut buffer)?) {}
        }
        let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| format!("open /dev/net/tun: {errno}"))?;
        setns(&self.home, CloneFlags::CLONE_NEWNET).map_err(|errno| format!("setns home: {errno}"))?;
        make_tap(&tun)?;
        transmit(&socket, &self.dress.0)?;
        acknowledged(receive(&socket, &mut buffer)?)?;
        transmit(&socket, &self.redirects)?;
        // A refusal of one before the last comes in the place of its acknowledgement.
        acknowledged(receive(&socket, &mut buffer)?)?;
        Ok(Up { socket, _tun: tun, tap: self.tap })
    }

    /// Takes it away again.
    pub(crate) fn take_down(&self, up: &Up) -> Result<(), String> {
        let mut buffer = [0; 4096];
        let messages = [ingress(RTM_DELQDISC, ACK, self.link), Message::new(RTM_DELLINK, ACK, &link(up.tap, 0))];
        for message in messages {
            transmit(&up.socket, &message.0)?;
            acknowledged(receive(&up.socket, &mut buffer)?)?;
        }
        Ok(())
    }
}

fn open(path: &str) -> Result<OwnedFd, String> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("open {path}: {errno}"))
}

fn netlink() -> Result<OwnedFd, String> {
    let failed = |errno| format!("netlink socket: {errno}");
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
    let fd = fd.map_err(failed)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
    Ok(fd)
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) -> Result<(), String> {
    send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(|errno| format!("sendmsg: {errno}"))
}

fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], String> {
    let length = recv(socket.as_raw_fd(), buffer, MsgFlags::empty()).map_err(|errno| format!("recvmsg: {errno}"))?;
    Ok(buffer.get(..length).unwrap_or_default())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Whether the last message of a datagram is `NLMSG_DONE`, which is the only one of 20 bytes.
fn is_done(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while rest.len() >= 16 {
        let (length, kind) = (word(rest, 0) as usize, word(rest, 4) & 0xffff);
        if kind == 3 {
            return true;
        }
        rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn acknowledged(datagram: &[u8]) -> Result<(), String> {
    match word(datagram, 16) {
        0 => Ok(()),
        error => Err(format!(
            "the kernel refused: {}",
            std::io::Error::from_raw_os_error(error.cast_signed().wrapping_neg())
        )),
    }
}

fn make_tap(tun: &OwnedFd) -> Result<(), String> {
    // SAFETY: `ifreq` is plain old data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(0);
    // SAFETY: the descriptor is open for the duration of the call, and `request` is a whole `ifreq`
    // that the kernel reads and writes back in place.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw mut request) }.map(drop).map_err(|errno| format!("TUNSETIFF: {errno}"))
}
