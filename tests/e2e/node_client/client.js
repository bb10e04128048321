// Asks a platform about a picture, with nothing but its .proto files:
//
//     node client.js PROTOS HOST:PORT PICTURE QUESTION X1,Y1,X2,Y2
//
// Prints an object a line: the image as the platform knows it, then every event of the answer. A failure is one, too: its
// status by name, and what to do.

import { readFile } from "node:fs/promises";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [protos, server, picture, question, box] = process.argv.slice(2);

const definition = loadSync("ferret/v1/ferret.proto", {
  includeDirs: [protos],
  keepCase: true, // names as they are written there
  enums: String,
  defaults: true,
  oneofs: true,
});
const { FerretService } = grpc.loadPackageDefinition(definition).ferret.v1;
const client = new FerretService(server, grpc.credentials.createInsecure());

const print = (message) => console.log(JSON.stringify(message));

function upload(image_bytes) {
  return new Promise((resolve, reject) =>
    client.uploadImage({ image_bytes }, (error, response) => (error ? reject(error) : resolve(response.image))),
  );
}

try {
  const image = await upload(await readFile(picture));
  print({ image });
  const [x1, y1, x2, y2] = box.split(",").map(Number);
  const answer = client.chat({ image_id: image.id, question, regions: { 0: { box: { x1, y1, x2, y2 } } } });
  for await (const { event, ...response } of answer) print({ [event]: response[event] });
} catch (error) {
  print({ error: { status: grpc.status[error.code] ?? "UNKNOWN", message: error.details ?? String(error) } });
  process.exitCode = 1;
} finally {
  client.close();
}
