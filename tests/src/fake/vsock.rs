//! The vsock daemon: a vhost-user socket for the VMM, a hybrid one for whoever wants the guest.

use std::io;
use std::path::Path;
use std::sync::Arc;

use agent_protocol::agent_ttrpc::create_agent_service;
use agent_protocol::health_ttrpc::create_health;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::agent::Agent;
use super::vhost_user;

/// Serves both sockets for ever. While a VMM is connected there is a guest, whose agent listens.
///
/// # Errors
/// A socket cannot be made, or fails.
pub async fn serve(vhost: &Path, hybrid: &Path) -> io::Result<()> {
    let (vhost, hybrid) = (UnixListener::bind(vhost)?, UnixListener::bind(hybrid)?);
    let (boots, guest) = watch::channel(0_u64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = hybrid.accept().await {
            tokio::spawn(pass_on(stream, guest.clone()));
        }
    });
    loop {
        let (mut vmm, _) = vhost.accept().await?;
        // Odd while a guest is there.
        boots.send_modify(|boots| *boots += 1);
        let end = vhost_user::answer(&mut vmm).await;
        boots.send_modify(|boots| *boots += 1);
        if let Err(error) = end {
            eprintln!("the VMM went without a word: {error}");
        }
    }
}

/// Connects a client with the guest's agent until one of them hangs up or the guest ends.
async fn pass_on(mut client: UnixStream, mut guest: watch::Receiver<u64>) {
    let mut asked = Vec::new();
    while asked.last() != Some(&b'\n') && asked.len() < 64 {
        match client.read_u8().await {
            Ok(byte) => asked.push(byte),
            Err(_) => return,
        }
    }
    let boot = *guest.borrow_and_update();
    let wanted = format!("CONNECT {}\n", agent_protocol::AGENT_PORT);
    if boot.is_multiple_of(2) || asked != wanted.as_bytes() {
        return;
    }
    let Ok((mut ours, theirs)) = UnixStream::pair() else { return };
    let Ok(mut server) = agent(theirs).await else { return };
    if client.write_all(b"OK 1073741824\n").await.is_ok() {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut ours) => {}
            _ = guest.wait_for(|now| *now != boot) => {}
        }
    }
    let _ = server.shutdown().await;
}

/// An agent on the other end of `stream`. What containers there are is the same on each.
async fn agent(stream: UnixStream) -> ttrpc::Result<Server> {
    let (sender, streams) = mpsc::unbounded_channel();
    // The receiver is right here.
    let _ = sender.send(stream);
    let accept = futures::stream::unfold((streams, sender), |(mut streams, sender)| async move {
        let stream = streams.recv().await?;
        Some((Ok(stream), (streams, sender)))
    });
    let service = Arc::new(Agent::default());
    let mut server = Server::new()
        .add_listener(Listener::new(accept))
        .register_service(create_agent_service(service.clone()))
        .register_service(create_health(service));
    server.start().await?;
    Ok(server)
}
