//! Takes the place of `qemu-system-x86_64`: its command line, its QMP, its signals, its descriptors.
#![expect(unsafe_code, reason = "a descriptor that was passed to this process is known by its number only")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net;
use std::process::ExitCode;

use lifecycle_tests::fake::{Machine, Options, serve_qmp};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

/// A chardev on a passed socket.
enum Chardev {
    Connected(UnixStream),
    Listening(UnixListener),
}

impl Chardev {
    fn open(options: &Options, id: &str) -> io::Result<Option<Self>> {
        let Some(number) = options.property("chardev", id, "fd") else { return Ok(None) };
        let number: RawFd = number.parse().map_err(io::Error::other)?;
        // SAFETY: whoever started us passed it for this chardev, and nothing else here uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Some(if options.property("chardev", id, "server") == Some("on") {
            // As QEMU: so the socket's peers see who listens.
            rustix::net::listen(&fd, 1)?;
            let listener = net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Self::Listening(UnixListener::from_std(listener)?)
        } else {
            let stream = net::UnixStream::from(fd);
            stream.set_nonblocking(true)?;
            Self::Connected(UnixStream::from_std(stream)?)
        }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse(std::env::args().skip(1));
    if options.values("bios").next().is_some() {
        eprintln!("there is no KVM in here");
        return ExitCode::FAILURE;
    }
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stand-in: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut machine = Machine::start(options)?;
    if let Some(console) = Chardev::open(options, "console")? {
        tokio::spawn(talk(console));
    }
    let qmp = Chardev::open(options, "qmp")?.ok_or_else(|| io::Error::other("no chardev qmp on a descriptor"))?;
    tokio::select! {
        _ = terminated.recv() => Ok(()),
        ended = control(qmp, &mut machine) => ended,
    }
}

/// Serves clients one after the other; the machine outlives each.
async fn control(qmp: Chardev, machine: &mut Machine) -> io::Result<()> {
    match qmp {
        Chardev::Connected(mut stream) => {
            if serve_qmp(&mut stream, machine).await? {
                return Ok(());
            }
            std::future::pending().await
        }
        Chardev::Listening(listener) => loop {
            let (mut stream, _) = listener.accept().await?;
            // A client that goes amid a command is no reason for a machine to end.
            if let Ok(true) = serve_qmp(&mut stream, machine).await {
                return Ok(());
            }
        },
    }
}

async fn talk(console: Chardev) {
    match console {
        Chardev::Connected(mut stream) => {
            let _ = stream.write_all(b"stand-in: there is no guest\n").await;
            std::future::pending().await
        }
        Chardev::Listening(listener) => {
            let mut readers = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"stand-in: there is no guest\n").await;
                readers.push(stream);
            }
        }
    }
}
