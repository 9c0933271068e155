//! The redirect between a link and its tap: an ingress qdisc on each, and below it one u32 filter
//! that matches every frame and hands it to the other one's egress.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use sandbox_model::{ErrorKind, PortError, PortResult};

use super::netlink::{Answer, Request, dump, transact};
use super::{live, tap};
use crate::host::{Redirect, RemoveRedirect};

/// Handle of every ingress qdisc, and so the parent of its filters.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Priority of our filters: a number that nobody gets by default.
const PRIORITY: u16 = 0x5241;
/// `ETH_P_ALL`, which the kernel expects in network order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// See [`NetworkHost::redirect`](crate::NetworkHost::redirect). `Busy`: another tc request is under
/// way, try again.
///
/// All four requests go in one transaction, which a `kill -9` does not interrupt in the middle.
pub(super) fn add(request: &Redirect) -> PortResult<()> {
    let socket = live(&request.socket, "tc redirect", &request.link)?;
    let (link, tap) = (request.link_index, request.tap_index);
    let new = NLM_F_CREATE | NLM_F_EXCL;
    let steps = vec![
        Request { message: RouteNetlinkMessage::NewQueueDiscipline(qdisc(link)), flags: new },
        Request { message: RouteNetlinkMessage::NewQueueDiscipline(qdisc(tap)), flags: new },
        Request { message: filter_to(link, tap, &request.mark.cookie), flags: new },
        Request { message: filter_to(tap, link, &request.mark.cookie), flags: new },
    ];
    let answers = transact(socket, steps)?;
    let names = ["qdisc add ingress", "qdisc add ingress (tap)", "filter add", "filter add (tap)"];
    let Some((operation, errno)) =
        names.iter().zip(&answers).find_map(|(name, answer)| answer.as_ref().err().map(|errno| (*name, *errno)))
    else {
        return Ok(());
    };
    let error = PortError::os(operation, &request.link, errno);
    if take_back(socket, request, &answers) { Err(error) } else { Err(error.doubtful()) }
}

/// Takes back the steps that went through; replies whether that worked.
fn take_back(socket: &OwnedFd, request: &Redirect, answers: &[Answer]) -> bool {
    let went = |step: usize| answers.get(step).is_some_and(Result::is_ok);
    let mut undo = Vec::new();
    for (qdisc_step, filter_step, index) in [(0, 2, request.link_index), (1, 3, request.tap_index)] {
        if went(qdisc_step) {
            undo.push(delete_qdisc(index));
        } else if went(filter_step) {
            // It went below somebody else's qdisc.
            undo.push(delete_filters(index));
        }
    }
    undo.is_empty() || transact(socket, undo).is_ok_and(|answers| answers.iter().all(Result::is_ok))
}

/// See [`NetworkHost::remove_redirect`](crate::NetworkHost::remove_redirect).
pub(super) fn remove(request: &RemoveRedirect) -> PortResult<()> {
    let operation = "RTM_DELQDISC";
    let socket = live(&request.socket, operation, &request.link)?;
    let refused = |operation, errno| PortError::os(operation, &request.link, tap::not_found(errno));
    let link = match request.index {
        Some(index) => index,
        None => {
            let found = tap::get(socket, tap::named(&request.link));
            found.map_err(|errno| refused("RTM_GETLINK", errno))?.header.index
        }
    };
    let foreign = |cause: &str| Err(PortError::new(ErrorKind::Foreign, operation, &request.link, cause.to_owned()));
    let step = match (hook(socket, link)?, filters(socket, link, &request.mark.cookie)?) {
        (Hook::Free, _) => {
            let cause = "it has no ingress qdisc";
            return Err(PortError::new(ErrorKind::NotFound, operation, &request.link, cause));
        }
        (Hook::Other(kind), _) => return foreign(&format!("its qdisc is of kind {kind}")),
        (Hook::Ingress, Filters { ours: true, others: false }) => delete_qdisc(link),
        // Somebody made himself at home below our qdisc: it is his now.
        (Hook::Ingress, Filters { ours: true, others: true }) => delete_filters(link),
        (Hook::Ingress, Filters { ours: false, others: true }) => {
            return foreign("its ingress qdisc carries none of our filters");
        }
        (Hook::Ingress, Filters { ours: false, others: false }) if request.index.is_none() => {
            return foreign("its ingress qdisc is empty and not known to be ours");
        }
        (Hook::Ingress, Filters { ours: false, others: false }) => delete_qdisc(link),
    };
    let answer = transact(socket, vec![step])?.into_iter().next().unwrap_or(Err(Errno::EPROTO));
    answer.map(drop).map_err(|errno| refused(operation, errno))
}

/// What sits on the ingress hook of a link.
enum Hook {
    Free,
    Ingress,
    Other(String),
}

fn hook(socket: &OwnedFd, link: u32) -> PortResult<Hook> {
    let mut hook = Hook::Free;
    dump(socket, RouteNetlinkMessage::GetQueueDiscipline(at(link)), |message| {
        // The kernel dumps all links, whatever is asked.
        if let Ok(RouteNetlinkMessage::NewQueueDiscipline(message)) = message
            && message.header.index == link.cast_signed()
            && message.header.parent == TcHandle::INGRESS
        {
            hook = match kind_of(&message) {
                "ingress" => Hook::Ingress,
                other => Hook::Other(other.to_owned()),
            };
        }
    })?;
    Ok(hook)
}

/// Whose filters are below an ingress qdisc.
#[derive(Default)]
struct Filters {
    ours: bool,
    others: bool,
}

fn filters(socket: &OwnedFd, link: u32, cookie: &[u8]) -> PortResult<Filters> {
    let mut wanted = at(link);
    wanted.header.parent = INGRESS;
    let mut found = Filters::default();
    let dumped = dump(socket, RouteNetlinkMessage::GetTrafficFilter(wanted), |message| match message {
        Ok(RouteNetlinkMessage::NewTrafficFilter(message)) => {
            // A u32 classifier also lists its hash tables, which carry no action.
            let has_priority = message.header.info >> 16 == u32::from(PRIORITY);
            found.ours |= has_priority && cookies(&message).any(|found| found == cookie);
            found.others |= !has_priority || cookies(&message).any(|found| found != cookie);
        }
        Ok(_) => {}
        // One that cannot be decoded is none of ours.
        Err(_) => found.others = true,
    });
    match dumped {
        // There is no such qdisc.
        Err(error) if error.errno == Some(Errno::EINVAL as i32) => Ok(found),
        Err(error) => Err(error),
        Ok(_) => Ok(found),
    }
}

fn kind_of(message: &TcMessage) -> &str {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// The cookies of a u32 filter's actions.
fn cookies(message: &TcMessage) -> impl Iterator<Item = &[u8]> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .filter_map(|option| match option {
            TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
            _ => None,
        })
        .flatten()
        .flat_map(|action| &action.attributes)
        .filter_map(|attribute| match attribute {
            TcActionAttribute::Cookie(cookie) => Some(cookie.as_slice()),
            _ => None,
        })
}

fn at(link: u32) -> TcMessage {
    TcMessage::with_index(link.cast_signed())
}

fn qdisc(link: u32) -> TcMessage {
    let mut message = at(link);
    message.header.handle = INGRESS;
    message.header.parent = TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    message
}

fn delete_qdisc(link: u32) -> Request {
    Request { message: RouteNetlinkMessage::DelQueueDiscipline(qdisc(link)), flags: 0 }
}

/// All filters of our priority.
fn delete_filters(link: u32) -> Request {
    Request { message: RouteNetlinkMessage::DelTrafficFilter(below(link)), flags: 0 }
}

fn below(link: u32) -> TcMessage {
    let mut message = at(link);
    message.header.parent = INGRESS;
    message.header.info = u32::from(TcHandle { major: PRIORITY, minor: ALL_PROTOCOLS });
    message
}

/// `match u8 0 0 action mirred egress redirect dev TO`, with our cookie on the action.
fn filter_to(from: u32, to: u32, cookie: &[u8]) -> RouteNetlinkMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Cookie(cookie.to_vec()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut message = below(from);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    RouteNetlinkMessage::NewTrafficFilter(message)
}
