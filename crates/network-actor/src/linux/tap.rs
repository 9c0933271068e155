//! Taps: made by ioctl, dressed and deleted by netlink.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_model::network::IpNet;
use sandbox_model::{ErrorKind, PassedFd, PortError, PortResult};
use tokio::io::Interest;

use super::live;
use super::netlink::{Answer, Request, tell, transact};
use crate::host::{CreateTap, RemoveTap};

mod ioctl;
pub(super) use ioctl::open_tun;

/// See [`NetworkHost::create_tap`](crate::NetworkHost::create_tap).
pub(super) fn create(request: &CreateTap) -> PortResult<u32> {
    let socket = live(&request.socket, "TUNSETIFF", &request.name)?;
    let queues =
        request.queues.iter().map(|queue| live(queue, "TUNSETIFF", &request.name)).collect::<PortResult<Vec<_>>>()?;
    let (Some(first), Some(others)) = (queues.first(), queues.get(1..)) else {
        return Err(PortError::new(ErrorKind::Invalid, "TUNSETIFF", &request.name, "no descriptor was given"));
    };
    let is_multi_queue = !others.is_empty();
    ioctl::create(first, &request.name, is_multi_queue)?;
    // From here on the name is ours, whatever it carries.
    dress(socket, others, request).map_err(|error| match transact(socket, vec![delete(named(&request.name))]) {
        Ok(answers) if answers.iter().all(Result::is_ok) => error,
        _ => error.doubtful(),
    })
}

/// Joins the other queues, sets MTU and mark, brings the tap up and gives it its addresses.
fn dress(socket: &OwnedFd, others: &[&Arc<OwnedFd>], request: &CreateTap) -> PortResult<u32> {
    for queue in others {
        ioctl::join(queue, &request.name)?;
    }
    let mut set = named(&request.name);
    set.header.flags = LinkFlags::Up;
    set.header.change_mask = LinkFlags::Up;
    set.attributes.push(LinkAttribute::Mtu(request.mtu));
    set.attributes.push(LinkAttribute::IfAlias(request.alias.clone()));
    let set = Request { message: RouteNetlinkMessage::SetLink(set), flags: 0 };
    let get = Request { message: RouteNetlinkMessage::GetLink(without_counters(named(&request.name))), flags: 0 };
    let answers = transact(socket, vec![set, get])?;
    let mut answers = answers.into_iter();
    let mut next = |operation: &str| -> PortResult<Vec<RouteNetlinkMessage>> {
        answers.next().unwrap_or(Err(Errno::EPROTO)).map_err(|errno| refused(operation, request, errno))
    };
    next("RTM_SETLINK")?;
    let index = next("RTM_GETLINK")?
        .into_iter()
        .find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
            _ => None,
        })
        .ok_or_else(|| refused("RTM_GETLINK", request, Errno::ENODEV))?;
    let wished: Vec<Request> = request.addresses.iter().map(|net| address(index, *net)).collect();
    if !wished.is_empty() {
        for answer in transact(socket, wished)? {
            answer.map_err(|errno| refused("RTM_NEWADDR", request, errno))?;
        }
    }
    Ok(index)
}

fn refused(operation: &str, request: &CreateTap, errno: Errno) -> PortError {
    PortError::os(operation, format!("{} (mtu {})", request.name, request.mtu), errno)
}

/// See [`NetworkHost::remove_tap`](crate::NetworkHost::remove_tap).
pub(super) fn remove(request: &RemoveTap) -> PortResult<()> {
    let operation = "RTM_DELLINK";
    let socket = live(&request.socket, operation, &request.name)?;
    let found = get(socket, named(&request.name))
        .map_err(|errno| PortError::os("RTM_GETLINK", &request.name, not_found(errno)))?;
    let alias = found.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    });
    let index = found.header.index;
    if alias != Some(&*request.alias) {
        let cause = format!("link {index} of that name carries the alias {:?}", alias.unwrap_or_default());
        return Err(PortError::new(ErrorKind::Foreign, operation, &request.name, cause));
    }
    if request.index.is_some_and(|expected| expected != index) {
        let cause = format!("link {index} of that name is a later tap of ours");
        return Err(PortError::new(ErrorKind::NotFound, operation, &request.name, cause));
    }
    let mut by_index = LinkMessage::default();
    by_index.header.index = index;
    let answer = match request.queues.first().and_then(PassedFd::get) {
        // Whoever waits for its end goes on, with this socket, before this thread is back.
        Some(queue) => tell(socket, delete(by_index), || is_gone(queue))?,
        None => transact(socket, vec![delete(by_index)])?.into_iter().next().unwrap_or(Err(Errno::EPROTO)).map(drop),
    };
    answer.map_err(|errno| PortError::os(operation, &request.name, not_found(errno)))
}

/// Whether the kernel has taken a tap from its queue.
fn is_gone(queue: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(queue, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok_and(|_| asked[0].revents().contains(PollFlags::ERR))
}

/// Resolves when the kernel has taken a tap from its queue: its name and index are free then.
pub(super) async fn gone(queue: Arc<OwnedFd>) {
    if let Ok(queue) = ioctl::watch(queue) {
        while let Ok(mut ready) = queue.ready(Interest::READABLE | Interest::ERROR).await {
            if ready.ready().is_error() {
                return;
            }
            // A frame for a guest that reads no more.
            ready.clear_ready();
        }
    }
    std::future::pending().await
}

/// One link.
pub(super) fn get(socket: &OwnedFd, wanted: LinkMessage) -> Result<LinkMessage, Errno> {
    let request = Request { message: RouteNetlinkMessage::GetLink(without_counters(wanted)), flags: 0 };
    let answer: Answer = match transact(socket, vec![request]) {
        Ok(answers) => answers.into_iter().next().unwrap_or(Err(Errno::EPROTO)),
        Err(error) => Err(error.errno.map_or(Errno::EPROTO, Errno::from_raw)),
    };
    answer?
        .into_iter()
        .find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
        .ok_or(Errno::EPROTO)
}

/// netlink says "no such device" where files say "no such file".
pub(super) fn not_found(errno: Errno) -> Errno {
    if errno == Errno::ENODEV { Errno::ENOENT } else { errno }
}

/// A wish for a link without its counters, which the kernel adds up over all CPUs and which are most
/// of an answer.
pub(super) fn without_counters(mut wanted: LinkMessage) -> LinkMessage {
    wanted.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    wanted
}

pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn delete(link: LinkMessage) -> Request {
    Request { message: RouteNetlinkMessage::DelLink(link), flags: 0 }
}

fn address(link: u32, net: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = net.prefix;
    message.header.family = match net.address {
        IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    // Nobody else is on this wire, and a tentative address would not answer the guest for a second.
    if net.address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(net.address), AddressAttribute::Address(net.address)];
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}
