//! Turns `proto/*.proto` into Rust; needs no `protoc`.

use std::path::Path;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize};

const FILES: [&str; 5] = ["health", "types", "csi", "oci", "agent"];
const WITH_SERVICES: [&str; 2] = ["health_ttrpc", "agent_ttrpc"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    Codegen::new()
        .inputs(FILES.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()?;
    // The generator's own `mod.rs` starts with an inner attribute, which `include!` refuses.
    let modules: String = FILES.iter().chain(&WITH_SERVICES).map(|name| format!("pub mod {name};\n")).collect();
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new(&out).join("modules.rs"), modules)
}
