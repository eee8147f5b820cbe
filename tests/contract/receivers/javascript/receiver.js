// A receiver that verifies by the published JavaScript library. It prints the port that it listens on, and then a
// line of JSON for each request that it has verified.
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_KEY);

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString("utf8");
  try {
    console.log(JSON.stringify({ event: webhook.verify(body, request.headers) }));
    response.writeHead(204).end();
  } catch (error) {
    response.writeHead(401).end(String(error));
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
