// A whole agent program over gRPC: start it, stream one generation, end it.
// Needs nothing of the server but the .proto file: `node client.js HOST:PORT PROTO_PATH [API_KEY]`.
// Prints one JSON object: the program, the text, the token ids and the usage.

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [target, protoPath, apiKey] = process.argv.slice(2);
if (!protoPath) {
  console.error("usage: node client.js HOST:PORT PROTO_PATH [API_KEY]");
  process.exit(2);
}

const DEADLINE_MS = 60_000;

const definition = protoLoader.loadSync(protoPath, { keepCase: true, enums: String, longs: Number, defaults: true });
const { ProgramService } = grpc.loadPackageDefinition(definition).autellix.program.v1;
const client = new ProgramService(target, grpc.credentials.createInsecure());

function metadata() {
  const headers = new grpc.Metadata();
  if (apiKey) headers.set("authorization", `Bearer ${apiKey}`);
  return headers;
}

function options() {
  return { deadline: Date.now() + DEADLINE_MS };
}

function call(method, request) {
  return new Promise((resolve, reject) =>
    client[method](request, metadata(), options(), (error, response) => (error ? reject(error) : resolve(response))),
  );
}

async function generate(request) {
  const result = { text: "", token_ids: [], messages: 0 };
  for await (const piece of client.Generate(request, metadata(), options())) {
    result.messages += 1;
    result.call_id ||= piece.call_id;
    result.text += piece.text;
    result.token_ids.push(...piece.token_ids);
    if (piece.finish_reason !== "FINISH_REASON_UNSPECIFIED") {
      result.finish_reason = piece.finish_reason;
      result.usage = piece.usage;
    }
  }
  return result;
}

async function main() {
  const started = await call("StartProgram", { session: "node-client", class_name: "demo" });
  const program_id = started.program.program_id;
  const generation = await generate({
    program_id,
    chat: { messages: [{ role: "user", content: "Say hello." }] },
    sampling: { temperature: 0, max_tokens: 8, ignore_eos: true },
  });
  const ended = await call("EndProgram", { program_id });
  // A program that has ended takes no more calls: the server says so with a typed error.
  const refused = await generate({ program_id, text: "again" }).then(
    () => null,
    (error) => ({ code: grpc.status[error.code], message: error.details }),
  );
  console.log(JSON.stringify({ created: started.created, program_id, generation, ended: ended.program, refused }));
}

main()
  .catch((error) => {
    console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error.message}`);
    process.exitCode = 1;
  })
  .finally(() => client.close());
