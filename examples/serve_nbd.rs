//! A compressed RAM disk of 1 GiB that NBD clients use until Enter is pressed.

use std::sync::Arc;
use std::time::Duration;

use uzram::Device;
use uzram::nbd::{Address, Server, ServerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::builder(1 << 30).mem_limit(64 << 20).build()?;
    let socket = std::env::temp_dir().join(format!("uzram-{}.sock", std::process::id()));
    let config = ServerConfig::new("disk", vec![Address::Unix(socket)]);
    let server = Server::start(config, Arc::new(device))?;
    println!("the export \"disk\" is on {}", server.addresses()[0]);
    std::io::stdin().read_line(&mut String::new())?;
    server.shutdown(Duration::from_secs(1));
    Ok(())
}
