// Sends one mail with Nodemailer; the settings are JSON on the standard input.
const fs = require('fs');
const nodemailer = require('nodemailer');

const s = JSON.parse(fs.readFileSync(0, 'utf8'));
const transport = nodemailer.createTransport({
  host: s.Host,
  port: s.Port,
  name: 'client.example',
  secure: s.TLS === 'implicit',
  requireTLS: true,
  tls: { ca: fs.readFileSync(s.CAFile) },
  auth: { user: s.User, pass: s.Password },
  authMethod: s.Mechanism,
});
const mail = { envelope: { from: s.From, to: s.To }, raw: Buffer.from(s.Body, 'base64') };
transport.sendMail(mail).then(
  (info) => {
    console.log(info.response);
    if (info.rejected.length > 0) process.exitCode = 1;
  },
  (err) => {
    console.error(`${err.code || ''} ${err.responseCode || ''} ${err.message}`);
    process.exitCode = 1;
  },
);
