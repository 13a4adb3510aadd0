//! Reads a chat request from standard input and says how it is taken.
//!
//! ```text
//! echo '{"model":"ram-demo","messages":[{"role":"user","content":"hi"}],"tools":[{}]}' \
//!   | cargo run -p ram-proto --example parse
//! ```

#![allow(clippy::print_stdout, reason = "an example speaks to a person")]

use std::io::Read;

use ram_core::units::TokenCount;
use ram_proto::openai::{BODY_BYTES_MAX, ChatRequest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut body = Vec::new();
    std::io::stdin().take(BODY_BYTES_MAX.get() + 1).read_to_end(&mut body)?;
    match ChatRequest::parse(&body) {
        Ok(parsed) => {
            println!("model     {}", parsed.request.model);
            println!("messages  {}", parsed.request.messages.len());
            println!("delivery  {:?}", parsed.request.delivery);
            println!("ignored   {}", parsed.ignored_header().as_deref().unwrap_or("nothing"));
            println!(
                "params    {}",
                serde_json::to_string_pretty(&parsed.request.params(0, TokenCount::new(8192), 0))?
            );
        }
        Err(error) => println!("{} {}", error.status, serde_json::to_string_pretty(&error)?),
    }
    Ok(())
}
