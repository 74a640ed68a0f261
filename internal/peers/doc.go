// Package peers runs the mail programs that other people wrote, so that the
// tests speak to them and not only to ourselves: the clients swaks, msmtp, curl,
// Python's smtplib and Nodemailer, and the servers Postfix and Exim. Beside them are the
// shells that admins have, with their completion: see [StartShell].
//
// fetch.sh unpacks them into .cache/peers of the checkout; nothing is installed
// and no service of the machine is touched. A server runs in a temporary folder
// with its own configuration, queue, log, users (libnss-wrapper lends it names
// that the machine does not know) and a port on 127.0.0.1, and ends with the test,
// even with one that is killed.
//
// Where the machine has no package manager, [Require] and the starters for tests
// skip with the reason that fetch.sh left. A cache that was never fetched fails
// the test instead: it must not be possible to lose these tests in silence.
package peers
