//! Z5: what an agent may answer to each method.

use std::time::Duration;

use guest_agent::{
    AgentAddress, AgentFactory, GuestAgent, KataAgentFactory, ProcessRef, READ_LEN_MAX, ReadOutput, WriteInput,
};
use sandbox_model::network::{GuestInterface, MacAddress};
use sandbox_model::{ContainerId, Instant, PortResult, SandboxId, Secret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// The answer of a healthy agent: a status of 0 and a `HealthCheckResponse` that says `SERVING`.
const SERVING: [u8; 6] = [0x0a, 0x00, 0x12, 0x02, 0x08, 0x01];
/// How many bytes are asked for.
const ASKED: u32 = 16;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(500)
}

/// The first byte chooses the method, the second whether the rest is the answer's payload in a frame
/// of the right number, or is sent as it is. Any answer is taken within its bounds or refused.
///
/// # Panics
/// When an answer exceeds them.
pub fn z5_agent_replies(bytes: &[u8]) {
    let [method, form, rest @ ..] = bytes else { return };
    let (method, is_framed, rest) = (*method, form % 2 == 0, rest.to_vec());
    super::on_one_thread(async move {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let guest = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A peer that hangs up ends its connection and no more.
                let _ = serve(stream, is_framed, &rest).await;
            }
        });
        let agent = KataAgentFactory.create(&SandboxId::new("pod").expect("a literal id")).expect("a client");
        if agent.connect(AgentAddress::Hybrid { socket, port: 1024 }, soon()).await.is_ok() {
            let answered = ask(&*agent, method).await;
            if let Err(error) = answered {
                assert!(error.cause.chars().count() <= 2_000, "an error repeats the guest at length: {error}");
                assert!(!error.to_string().contains('\u{1b}'), "an error carries the guest's escapes");
            }
        }
        guest.abort();
    });
}

async fn ask(agent: &dyn GuestAgent, method: u8) -> PortResult<()> {
    let container = ContainerId::new("web").expect("a literal id");
    let process = ProcessRef { container: container.clone(), exec: String::new() };
    match method % 8 {
        0 => {
            let read = agent.read_stdout(ReadOutput { process, len: ASKED }, soon()).await?;
            assert!(read.len() <= ASKED as usize && ASKED <= READ_LEN_MAX);
        }
        1 => {
            let status = agent.wait_process(process, soon()).await?;
            assert!((0..=255).contains(&status), "{status}");
        }
        2 => {
            let data = Secret::new(vec![0; 5]);
            assert!(agent.write_stdin(WriteInput { process, data }, soon()).await? <= 5);
        }
        3 => drop(agent.guest_details((), soon()).await?),
        4 => assert!(!agent.oom_event((), soon()).await?.as_str().contains('/')),
        5 => agent.check((), soon()).await?,
        6 => agent.start_container(container, soon()).await?,
        _ => {
            let interface = GuestInterface {
                name: "eth0".to_owned(),
                addresses: Vec::new(),
                mtu: 1500,
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                link_kind: "veth".to_owned(),
                raw_flags: 0,
            };
            agent.update_interface(interface, soon()).await?;
        }
    }
    Ok(())
}

/// A guest that is healthy once, and then answers `rest` and hangs up.
async fn serve(mut stream: UnixStream, is_framed: bool, rest: &[u8]) -> std::io::Result<()> {
    while stream.read_u8().await? != b'\n' {}
    stream.write_all(b"OK 1\n").await?;
    let id = request(&mut stream).await?;
    stream.write_all(&frame(id, &SERVING)).await?;
    let id = request(&mut stream).await?;
    let answer = if is_framed { frame(id, rest) } else { rest.to_vec() };
    stream.write_all(&answer).await
}

/// Reads one request and returns its stream's number.
async fn request(stream: &mut UnixStream) -> std::io::Result<u32> {
    let length = stream.read_u32().await?;
    let id = stream.read_u32().await?;
    let mut rest = vec![0; length as usize + 2];
    stream.read_exact(&mut rest).await?;
    Ok(id)
}

fn frame(stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[2, 0], payload].concat()
}
