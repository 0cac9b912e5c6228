// net.mjs HOST PORT: Node's net.connect and a GET by hand; prints the answer, or the error's code.
import net from "node:net";

const socket = net.connect(Number(process.argv[3]), process.argv[2], () => {
  socket.write("GET /peer HTTP/1.0\r\n\r\n");
});
socket.on("data", (data) => process.stdout.write(data));
socket.on("error", (error) => {
  console.log(`code=${error.code ?? error.errors?.map((one) => one.code).join(",")}`);
  process.exitCode = 1;
});
