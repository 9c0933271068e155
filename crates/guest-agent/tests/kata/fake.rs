//! An agent behind a hybrid vsock socket that behaves as a test wishes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent_protocol::agent::*;
use agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use agent_protocol::health::health_check_response::ServingStatus;
use agent_protocol::health::{CheckRequest, HealthCheckResponse};
use agent_protocol::health_ttrpc::{Health, create_health};
use agent_protocol::types::Interface;
use agent_protocol::{AGENT_PORT, Empty};
use guest_agent::AgentAddress;
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

/// What a connection meets.
#[derive(Clone)]
pub enum Front {
    /// No agent listens: the daemon hangs up.
    HangUp,
    /// Bytes instead of `OK`, and then silence.
    Say(Vec<u8>),
    /// An agent that means well.
    Agent,
    /// One that answers each method as the function says; `None` is silence.
    Raw(Answer),
    /// One that answers a health check and then reads no more.
    Deaf,
}

/// The bytes that answer a request, by its stream and method.
pub type Answer = Arc<dyn Fn(u32, &str) -> Option<Vec<u8>> + Send + Sync>;

/// A running fake.
pub struct Fake {
    _dir: tempfile::TempDir,
    pub socket: PathBuf,
    pub connections: Arc<AtomicUsize>,
    pub containers: Arc<Mutex<Vec<CreateContainerRequest>>>,
    _server: Server,
}

impl Fake {
    /// Listens; connection `n` meets the `n`th of `fronts`, later ones the last.
    pub async fn start(fronts: Vec<Front>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let containers = Arc::default();
        let (accepted, streams) = mpsc::unbounded_channel();
        let server = serve(streams, Arc::clone(&containers)).await;
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let nth = count.fetch_add(1, Ordering::Relaxed).min(fronts.len() - 1);
                tokio::spawn(meet(stream, fronts[nth].clone(), accepted.clone()));
            }
        });
        Self { _dir: dir, socket, connections, containers, _server: server }
    }

    pub fn address(&self) -> AgentAddress {
        AgentAddress::Hybrid { socket: self.socket.clone(), port: AGENT_PORT }
    }
}

async fn serve(
    streams: mpsc::UnboundedReceiver<UnixStream>,
    containers: Arc<Mutex<Vec<CreateContainerRequest>>>,
) -> Server {
    let accept = futures::stream::unfold(streams, |mut streams| async move {
        let stream = streams.recv().await?;
        Some((Ok(stream), streams))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(accept))
        .register_service(create_agent_service(Arc::new(Agent { containers })))
        .register_service(create_health(Arc::new(Healthy)));
    server.start().await.unwrap();
    server
}

async fn meet(mut stream: UnixStream, front: Front, accepted: mpsc::UnboundedSender<UnixStream>) {
    let mut asked = Vec::new();
    while asked.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) => asked.push(byte),
            Err(_) => return,
        }
    }
    assert_eq!(asked, format!("CONNECT {AGENT_PORT}\n").into_bytes());
    match front {
        Front::HangUp => {}
        Front::Say(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.read_u8().await;
        }
        Front::Agent => {
            for piece in [&b"O"[..], b"K 10737", b"41824", b"\n"] {
                stream.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            accepted.send(stream).unwrap();
        }
        Front::Deaf => {
            stream.write_all(b"OK 1\n").await.unwrap();
            let (mut head, mut answered) = ([0; 10], Vec::new());
            stream.read_exact(&mut head).await.unwrap();
            answered.resize(usize::from(head[3]), 0);
            stream.read_exact(&mut answered).await.unwrap();
            stream.write_all(&serving(1)).await.unwrap();
            std::future::pending().await
        }
        Front::Raw(answer) => {
            stream.write_all(b"OK 1\n").await.unwrap();
            let _ = answer_raw(stream, answer).await;
        }
    }
}

async fn answer_raw(mut stream: UnixStream, answer: Answer) -> std::io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let id = stream.read_u32().await?;
        stream.read_u16().await?;
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await?;
        let request = ttrpc::Request::parse_from_bytes(&payload).unwrap();
        let Some(bytes) = answer(id, &request.method) else {
            continue;
        };
        // Empty stands for a guest that dies.
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(&bytes).await?;
    }
}

/// A frame around `payload`.
pub fn frame(stream: u32, type_: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([type_, 0]);
    bytes.extend(payload);
    bytes
}

/// An answer that carries `payload`.
pub fn answer(stream: u32, payload: &impl Message) -> Vec<u8> {
    let mut response = ttrpc::Response::new();
    response.set_status(get_status(Code::OK, ""));
    response.payload = payload.write_to_bytes().unwrap();
    frame(stream, 2, &response.write_to_bytes().unwrap())
}

/// The answer of a healthy agent.
pub fn serving(stream: u32) -> Vec<u8> {
    answer(stream, &health())
}

fn health() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() }
}

struct Healthy;

#[async_trait::async_trait]
impl Health for Healthy {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(health())
    }
}

/// Does as the name of the container says.
struct Agent {
    containers: Arc<Mutex<Vec<CreateContainerRequest>>>,
}

fn refuse<T>(code: Code, text: &str) -> ttrpc::Result<T> {
    Err(Error::RpcStatus(get_status(code, text)))
}

#[async_trait::async_trait]
impl AgentService for Agent {
    async fn create_container(&self, _: &TtrpcContext, asked: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.containers.lock().unwrap().push(asked);
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, asked: StartContainerRequest) -> ttrpc::Result<Empty> {
        let codes = HashMap::from([
            ("missing", Code::NOT_FOUND),
            ("there", Code::ALREADY_EXISTS),
            ("policy", Code::PERMISSION_DENIED),
            ("broken", Code::INTERNAL),
        ]);
        match asked.container_id.as_str() {
            "silent" => std::future::pending().await,
            id => match codes.get(id) {
                Some(&code) => refuse(code, "it \x1b[31mfailed\n\nStack backtrace:\n  0: agent"),
                None => Ok(Empty::new()),
            },
        }
    }

    async fn read_stdout(&self, _: &TtrpcContext, asked: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        let len = usize::try_from(asked.len).unwrap();
        let data = match asked.container_id.as_str() {
            "eof" => return refuse(Code::INVALID_ARGUMENT, "read meet eof\n\nStack backtrace:"),
            "silent" => std::future::pending().await,
            "empty" => Vec::new(),
            "more" => vec![b'x'; len + 1],
            "huge" => vec![b'x'; 1 << 20],
            _ => vec![b'x'; len],
        };
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn write_stdin(&self, _: &TtrpcContext, asked: WriteStreamRequest) -> ttrpc::Result<WriteStreamResponse> {
        let len = u32::try_from(asked.data.len()).unwrap();
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn wait_process(&self, _: &TtrpcContext, asked: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        let status = if asked.exec_id == "killed" { 137 } else { -1 };
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn update_interface(&self, _: &TtrpcContext, asked: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        Ok(asked.interface.unwrap())
    }

    async fn get_guest_details(&self, _: &TtrpcContext, _: GuestDetailsRequest) -> ttrpc::Result<GuestDetailsResponse> {
        Ok(GuestDetailsResponse { mem_block_size_bytes: 128 << 20, ..Default::default() })
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        Ok(OOMEvent { container_id: "../../etc".to_owned(), ..Default::default() })
    }
}
