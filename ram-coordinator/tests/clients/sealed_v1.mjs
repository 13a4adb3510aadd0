// The product's sealed exchange, version 1, from its table of primitives alone: Web Crypto, and nothing else.

const base = process.env.OPENAI_BASE_URL.replace(/\/v1$/, "");
const headers = { authorization: `Bearer ${process.env.OPENAI_API_KEY}`, "content-type": "application/json" };
const subtle = globalThis.crypto.subtle;
const b64 = (bytes) => Buffer.from(bytes).toString("base64");
const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));

async function post(path, body) {
  const response = await fetch(base + path, { method: "POST", headers, body: JSON.stringify(body) });
  const told = await response.json();
  if (!response.ok) throw new Error(`${path}: ${response.status} ${JSON.stringify(told)}`);
  return told;
}

const offer = await post("/api/v1/e2e/init", { model: process.env.RAM_TEST_MODEL, max_tokens: 24, temperature: 0 });
const pair = await subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]);
const provider = await subtle.importKey("raw", bytes(offer.provider_public_key_b64), { name: "X25519" }, true, []);
const shared = await subtle.deriveBits({ name: "X25519", public: provider }, pair.privateKey, 256);
const hkdf = await subtle.importKey("raw", shared, "HKDF", false, ["deriveKey"]);
const key = await subtle.deriveKey(
  { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(), info: new TextEncoder().encode("xram-e2e-v1") },
  hkdf,
  { name: "AES-GCM", length: 256 },
  false,
  ["encrypt", "decrypt"],
);
const nonce = crypto.getRandomValues(new Uint8Array(12));
const prompt = new TextEncoder().encode(process.env.RAM_TEST_PROMPT);
const answer = await post("/api/v1/e2e/submit", {
  job_id: offer.job_id,
  encrypted_prompt_b64: b64(await subtle.encrypt({ name: "AES-GCM", iv: nonce }, key, prompt)),
  prompt_nonce_b64: b64(nonce),
  client_public_key_b64: b64(await subtle.exportKey("raw", pair.publicKey)),
});
const iv = bytes(answer.output_nonce_b64);
const output = await subtle.decrypt({ name: "AES-GCM", iv }, key, bytes(answer.encrypted_output_b64));
if (answer.encrypted !== true || answer.xram_job_id !== offer.job_id) throw new Error("not the product's answer");
process.stdout.write(new TextDecoder().decode(output));
