// Verifies a request by the package standardwebhooks: {Secret, Headers, Body} on standard input.
const { Webhook } = require('standardwebhooks');

const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
new Webhook(given.Secret).verify(given.Body, given.Headers);
