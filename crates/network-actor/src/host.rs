//! What the network actor asks of the kernel.

use std::path::PathBuf;

use sandbox_model::PassedFd;
use sandbox_model::network::IpNet;
use serde::{Deserialize, Serialize};

use crate::Mark;
use crate::view::NamespaceView;

sandbox_model::port! {
    /// The kernel's network, as far as a sandbox needs it.
    pub trait NetworkHost as "network-host", proxy NetworkHostProxy {
        /// Enters a namespace that exists, once, and opens what reaches it from outside.
        ///
        /// `NotFound`: nothing at that path. `Invalid`: no network namespace, or the host's.
        fn open_namespace(OpenNamespace) -> OpenedNamespace;

        /// Makes the empty file that a namespace will be bound to.
        fn create_file(CreateFile) -> Inode;

        /// Makes a namespace, binds it to a file, brings its loopback up and opens it.
        fn create_namespace(CreateNamespace) -> OpenedNamespace;

        /// Makes a tap that dies with its last descriptor, marks it and brings it up; replies with
        /// its index. All or nothing.
        ///
        /// `Exists`: a link of that name is there.
        fn create_tap(CreateTap) -> u32;

        /// Redirects all frames that arrive at a link to a tap, and the other way round. All or
        /// nothing.
        ///
        /// `Exists`: something sits on an ingress hook of the two.
        fn redirect(Redirect) -> ();

        /// Deletes a tap, if it is ours.
        ///
        /// `NotFound`: there is none of that name, or a later one of ours. `Foreign`: it is
        /// somebody else's.
        fn remove_tap(RemoveTap) -> ();

        /// Deletes the ingress qdisc of a link and the filters below it, if they are ours.
        ///
        /// `NotFound`: there is no link or no qdisc. `Foreign`: it is somebody else's.
        fn remove_redirect(RemoveRedirect) -> ();

        /// Unbinds a namespace from its file.
        ///
        /// `NotFound`: no namespace is bound there. `Foreign`: another one is.
        fn remove_namespace(RemoveNamespace) -> ();

        /// Removes the file of a namespace.
        ///
        /// `NotFound`: it is not there. `Foreign`: it is another file.
        fn remove_file(RemoveFile) -> ();
    }
}

/// How much of a namespace is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Want {
    /// A socket to undo things with.
    Socket,
    /// The socket and a view of it.
    View,
    /// A view of it, and descriptors for a tap beside each usable link.
    Endpoints {
        /// Queue pairs of each tap.
        queue_pairs: u16,
    },
}

/// See [`NetworkHost::open_namespace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenNamespace {
    /// Its file.
    pub path: PathBuf,
    /// How much of it.
    pub want: Want,
}

/// A namespace within reach.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenedNamespace {
    /// Device and inode of the namespace.
    pub identity: Inode,
    /// A netlink socket in it. One caller at a time.
    pub socket: PassedFd,
    /// Descriptors of `/dev/net/tun` opened in it, which belong to no link yet.
    pub tuns: Vec<PassedFd>,
    /// What it looks like; empty if only a socket was wanted.
    pub view: NamespaceView,
}

/// Which file, beyond doubt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// See [`NetworkHost::create_file`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateFile {
    /// Absolute path.
    pub path: PathBuf,
}

/// See [`NetworkHost::create_namespace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNamespace {
    /// The file that it is bound to.
    pub path: PathBuf,
    /// Descriptors of `/dev/net/tun` to open.
    pub tuns: u16,
}

/// See [`NetworkHost::create_tap`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateTap {
    /// Into its namespace.
    pub socket: PassedFd,
    /// The namespace's inode.
    pub namespace_inode: u64,
    /// One for each queue pair.
    pub queues: Vec<PassedFd>,
    /// At most 15 bytes.
    pub name: String,
    /// Our mark.
    pub alias: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses of the tap itself.
    pub addresses: Vec<IpNet>,
}

/// See [`NetworkHost::redirect`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Redirect {
    /// Into the namespace.
    pub socket: PassedFd,
    /// The namespace's inode.
    pub namespace_inode: u64,
    /// Name of the link, for records.
    pub link: String,
    /// Its index.
    pub link_index: u32,
    /// Index of the tap.
    pub tap_index: u32,
    /// Our mark.
    pub mark: Mark,
}

/// See [`NetworkHost::remove_tap`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveTap {
    /// Into its namespace.
    pub socket: PassedFd,
    /// The namespace's inode.
    pub namespace_inode: u64,
    /// Its name.
    pub name: String,
    /// The mark that it must carry.
    pub alias: String,
    /// The index that it must have; `None` while only the intent is known.
    pub index: Option<u32>,
    /// Its descriptors, if we made it and hold them: they tell when it is gone, and are closed when
    /// the kernel has done with it.
    #[serde(skip)]
    pub queues: Vec<PassedFd>,
}

/// See [`NetworkHost::remove_redirect`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveRedirect {
    /// Into the namespace.
    pub socket: PassedFd,
    /// The namespace's inode.
    pub namespace_inode: u64,
    /// Name of the link.
    pub link: String,
    /// Its index, if the qdisc is known to be ours; `None` while only the intent is known, and then
    /// a qdisc without our mark below it is left alone.
    pub index: Option<u32>,
    /// Our mark.
    pub mark: Mark,
}

/// See [`NetworkHost::remove_namespace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNamespace {
    /// The file that it is bound to.
    pub path: PathBuf,
    /// Which it must be; `None` while only the intent is known.
    pub identity: Option<Inode>,
}

/// See [`NetworkHost::remove_file`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Which it must be; `None` while only the intent is known, and then only an empty file is
    /// taken for ours.
    pub identity: Option<Inode>,
}
