package peers

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"postern/internal/serve"
)

// RelayConfig is a Postfix with the same job as Postern: it takes mail over TLS
// from whoever authenticates and passes it in clear to one next hop.
type RelayConfig struct {
	CertFile  string // PEM, with KeyFile; both empty: it makes a certificate of its own
	KeyFile   string
	User      string // the one account
	Password  string
	NextHop   string // address:port, an IP address
	Untuned   bool   // Postfix' defaults in place of what its documents advise for throughput
	Processes int    // default_process_limit; 0: 200
	Dir       string // parent of its folder, on the file system to be measured; "": the temporary folder
}

// A Relay is a running Postfix as a submission server.
type Relay struct {
	SubmissionPort int    // STARTTLS, on 127.0.0.1
	ImplicitPort   int    // implicit TLS, on 127.0.0.1
	CAFile         string // of the certificate that was made; "" when it was given

	dir     string
	postfix *postfix
	session int // of the kernel, with all its processes
}

// Log is what Postfix has written to its log.
func (r *Relay) Log() string { return r.postfix.log() }

// Close ends Postfix and removes its folder with its queue.
func (r *Relay) Close() {
	r.postfix.stop()
	_ = os.RemoveAll(r.dir) // a leftover in the temporary folder does no harm
}

// relayParameters tune Postfix for throughput as its own documents (QSHAPE_README,
// TUNING_README, CONNECTION_CACHE_README) advise. The settings that make mail
// durable keep their defaults.
func relayParameters(nextHop string, processes int) map[string]string {
	return map[string]string{
		"relayhost":                             nextHop,
		"default_process_limit":                 strconv.Itoa(processes),
		"in_flow_delay":                         "0",
		"default_destination_concurrency_limit": "100",
		"initial_destination_concurrency":       "20",
		"smtp_connection_cache_on_demand":       "yes",
		"smtp_connection_cache_destinations":    nextHop,
		"smtp_connection_reuse_count_limit":     "0",
		"smtp_connection_reuse_time_limit":      "300s",
		"qmgr_message_active_limit":             "50000",
		"qmgr_message_recipient_limit":          "50000",
		"smtpd_client_connection_rate_limit":    "0",
		"smtpd_client_message_rate_limit":       "0",
		"smtpd_client_recipient_rate_limit":     "0",
		"smtpd_recipient_limit":                 "1000",
	}
}

// StartPostfixRelay starts the unpacked Postfix as a submission server. It needs
// root. The context bounds the start only; [Relay.Close] ends it, and so does the
// end of this process.
func StartPostfixRelay(ctx context.Context, config RelayConfig) (*Relay, error) {
	cache, err := OpenCache()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(config.NextHop)
	if err != nil {
		return nil, err
	}
	if config.Processes == 0 {
		config.Processes = 200
	}
	r := &Relay{}
	if r.dir, err = serverDir(config.Dir, "relay"); err != nil {
		return nil, fmt.Errorf("prepare the relay: %w", err)
	}
	spec := postfixSpec{
		dir: r.dir, user: config.User, password: config.Password,
		main: relayParameters(fmt.Sprintf("[%s]:%s", host, port), config.Processes),
	}
	if config.Untuned {
		spec.main = map[string]string{"relayhost": spec.main["relayhost"]}
	}
	if err := r.prepare(config, &spec); err != nil {
		_ = os.RemoveAll(r.dir)
		return nil, fmt.Errorf("prepare the relay: %w", err)
	}
	if r.postfix, err = cache.runPostfix(ctx, spec); err != nil {
		_ = os.RemoveAll(r.dir)
		return nil, err
	}
	r.session = r.postfix.process.leader()
	return r, nil
}

// prepare chooses the certificate and the ports.
func (r *Relay) prepare(config RelayConfig, spec *postfixSpec) (err error) {
	spec.identity = certificate{certFile: config.CertFile, keyFile: config.KeyFile}
	if config.CertFile == "" {
		if spec.identity, err = makeCertificate(r.dir); err != nil {
			return err
		}
		r.CAFile = spec.identity.caFile
	}
	if r.SubmissionPort, err = serve.FreePort(); err != nil {
		return err
	}
	if r.ImplicitPort, err = serve.FreePort(); err != nil {
		return err
	}
	spec.ports, spec.implicit = []int{r.SubmissionPort, r.ImplicitPort}, r.ImplicitPort
	return nil
}
