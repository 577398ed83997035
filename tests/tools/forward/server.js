// A collector: FluentServer of @fluent-org/logger. Appends "tag time id" of every entry to the file OUT, and says its
// port on stdout. HABIT is what it does with a message: "ack" it once it is stored; "die-unstored", "die-unacked" exits
// before or after it is stored; "mute" stores it and says nothing.
"use strict";
const fs = require("fs");
const { FluentServer } = require("@fluent-org/logger");
const { OUT, PORT, HABIT, KEY, TLS_KEY, TLS_CERT } = process.env;

class Collector extends FluentServer {
  onEntry(tag, time, record) {
    if (HABIT === "die-unstored") process.exit(1);
    fs.appendFileSync(OUT, `${tag} ${time.epoch + time.nano / 1e9} ${record.id} ${record.type}\n`);
  }
}

const collector = new Collector({
  listenOptions: { port: Number(PORT || 0), host: "127.0.0.1" },
  security: KEY && { serverHostname: "collector", sharedKey: KEY, authorize: false, userDict: {} },
  tlsOptions: TLS_KEY && { key: fs.readFileSync(TLS_KEY), cert: fs.readFileSync(TLS_CERT) },
});
// FluentServer acknowledges before it hands out the entries. Its acknowledgements leave one turn later
// here, when they are stored.
collector.server.prependListener(TLS_KEY ? "secureConnection" : "connection", (socket) => {
  socket.setNoDelay(true);
  const write = socket.write.bind(socket);
  socket.write = (data) => {
    if (!Buffer.from(data).includes("ack")) return write(data);
    setImmediate(() => {
      if (HABIT === "die-unacked") process.exit(1);
      if (HABIT !== "mute") write(data);
    });
    return true;
  };
});
collector.listen().then(() => console.log(collector.port));
