package relay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"postern/internal/peers"
	"postern/internal/rig"
)

// scrape reads a page of a node's admin address.
func scrape(t *testing.T, node *rig.Node, path string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+node.Admin()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// busyNode is a node that has seen mail of every kind: delivered, refused by the next
// server, refused here, and a login that failed.
func busyNode(t *testing.T) *rig.Node {
	t.Helper()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 5)
	r.Postern("", "upstream", "set", "sink", "--budget", "messages 10000/m")
	r.Postern("", "upstream", "add", "mailbox", "--host", "localhost:1", "--username", "relay@example.com", "--oauth", "refresh-token",
		"--tenant", "example.com", "--client-id", "app-1", "--secret-expires", "2100-01-31")
	if said := r.Refused("upstream", "test", "mailbox"); !strings.Contains(said, "failed at token") {
		t.Fatal(said)
	}
	r.Postern("", "webhook", "add", "https://hooks.test/", "--all")
	r.Postern("", "dkim", "add", "signed.test", "--algorithm", "ed25519")
	node := r.Node(rig.NodeConfig{Name: "solo"})
	load := newLoad(t, r, node)
	load.Each, load.Pace = 5, 0
	load.Start()
	load.Wait()
	c, err := r.Dial(node, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Login(rig.User, "wrong"); rig.Code(err) != 535 {
		t.Fatalf("a wrong password: %v", err)
	}
	for _, step := range []func() error{
		func() error { return c.Login(rig.User, rig.Password) },
		func() error { return c.Say("MAIL", 550, "MAIL FROM:<somebody@elsewhere.test>") },
		func() error { return c.Say("MAIL", 250, "MAIL FROM:<a@"+rig.Domain+">") },
		func() error { return c.Say("RCPT", 250, "RCPT TO:<"+rig.RefusedLocal+"x@"+rig.Domain+">") },
		func() error { return c.Say("DATA", 354, "DATA") },
		func() error { return c.Say("dot", 250, "From: a@"+rig.Domain+"\r\n\r\nx\r\n.") },
		func() error { return c.Say("QUIT", 221, "QUIT") },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	r.Drain()
	return node
}

// TestMetrics reads the page of a node that has worked, and holds it against what
// claims to know it: the documentation, the dashboard and the alert rules.
func TestMetrics(t *testing.T) {
	t.Parallel()
	node := busyNode(t)
	// On a busy machine the first reading of the queue may come after the first page.
	awaitPage(t, node.Admin(), "/metrics", "the queue was read", func(_ int, body string) bool {
		return strings.Contains(body, "\npostern_database_up 1\n") && strings.Contains(body, "\npostern_upstream_budget_waiting") &&
			strings.Contains(body, "\npostern_upstream_login_needed{upstream=\"mailbox\"} 1\n") &&
			strings.Contains(body, "\npostern_webhook_disabled{webhook=\"hooks.test\"} 0\n") && strings.Contains(body, "\npostern_webhook_events_total")
	})
	status, page := scrape(t, node, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, page)
	}
	names := families(page)
	for _, want := range []string{
		"postern_auth_total{mechanism=\"PLAIN\",result=\"credentials\"} 1\n",
		"postern_refusals_total{class=\"permanent\",reason=\"sender\",stage=\"mail\"} 1\n",
		"postern_notices_total{kind=\"failure\",sent=\"yes\"} ", "postern_nodes 1\n", "postern_queue_recipients{age=\"5m\",state=\"waiting\"} 0\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	awaitPage(t, node.Admin(), "/readyz", "ready", func(status int, body string) bool {
		return status == http.StatusOK && strings.Contains(body, `"ready": true`)
	})
	if status, body := scrape(t, node, "/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %s", status, body)
	}
	t.Run("documentation", func(t *testing.T) { documented(t, page, names) })
	t.Run("check metrics", func(t *testing.T) { promtool(t, page, "check", "metrics") })
	t.Run("dashboard", func(t *testing.T) { dashboardHasData(t, page, names) })
	t.Run("alerts", func(t *testing.T) { alertsAreKnown(t, names) })
	t.Run("commands", func(t *testing.T) { commandsWork(t, node) })
}

// commandsWork runs the commands of docs/metrics.md as they stand there, but for the
// address, in the folder above.
func commandsWork(t *testing.T, node *rig.Node) {
	ran := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		for line := range strings.Lines(block[1]) {
			words := strings.Fields(strings.ReplaceAll(line, "127.0.0.1:5878", node.Admin()))
			cmd := peers.Require(t, words[0]).Command(t.Context(), words[1:]...)
			cmd.Dir = ".."
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%.2000s", strings.TrimSpace(line), err, out)
			}
			ran++
		}
	}
	if ran < 6 {
		t.Errorf("only %d commands were found", ran)
	}
}

// TestAlertRules has promtool judge the rules, run their tests and read the example.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	promtool(t, "", "check", "rules", "../configs/prometheus/alerts.yml")
	promtool(t, "", "check", "config", "../configs/prometheus/prometheus.yml")
	promtool(t, "", "test", "rules", "../configs/prometheus/alerts_test.yml")
	rules, tests := read(t, "../configs/prometheus/alerts.yml"), read(t, "../configs/prometheus/alerts_test.yml")
	for _, alert := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(rules, -1) {
		fires := regexp.MustCompile(`alertname: ` + alert[1] + `\n +exp_alerts:\n +- exp_labels:`)
		quiet := "alertname: " + alert[1] + ", exp_alerts: []"
		if !fires.MatchString(tests) || !strings.Contains(tests, quiet) {
			t.Errorf("alerts_test.yml does not show %s both firing and quiet", alert[1])
		}
	}
	for _, rule := range strings.Split(rules, "- alert: ")[1:] {
		for _, key := range []string{"summary: ", "description: ", "runbook: ", "severity: "} {
			if !strings.Contains(rule, key) {
				t.Errorf("%.30q has no %s", rule, key)
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// promtool runs Prometheus' own judge, which must be content.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.Patience)
	defer cancel()
	cmd := peers.Require(t, "promtool").Command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%.6000s", strings.Join(args, " "), err, out)
	}
}

// families are the names of the metrics on a page, with those of the series of
// histograms, and their types.
func families(page string) map[string]string {
	names := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(page, -1) {
		names[m[1]] = m[2]
		if m[2] == "histogram" {
			for _, series := range []string{"_bucket", "_sum", "_count"} {
				names[m[1]+series] = "series"
			}
		}
	}
	return names
}

// documented holds docs/metrics.md to the page, both ways: the names, and the labels of those
// that have a series.
func documented(t *testing.T, page string, names map[string]string) {
	doc := make(map[string][]string) // labels by name
	for _, row := range regexp.MustCompile("(?m)^\\| ((?:`\\w+` )+)\\| \\S.*\\S \\|$").FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		name := ""
		for _, word := range strings.Fields(strings.ReplaceAll(row[1], "`", "")) {
			if !strings.HasPrefix(word, "postern_") {
				doc[name] = append(doc[name], word)
				continue
			}
			name, doc[word] = word, nil
			if kind, there := names[word]; !there || kind == "series" {
				t.Errorf("docs/metrics.md has %s, the page has not", word)
			}
		}
	}
	labels := labelsOf(page, names)
	for name, kind := range names {
		if !strings.HasPrefix(name, "postern_") || kind == "series" {
			continue
		}
		said, there := doc[name]
		slices.Sort(said)
		if has, seen := labels[name]; !there {
			t.Errorf("docs/metrics.md has no row for %s", name)
		} else if seen && !slices.Equal(said, has) {
			t.Errorf("docs/metrics.md has %q as labels of %s, the page %q", said, name, has)
		}
	}
}

// labelsOf are the labels, sorted, of the metrics that have a series on the page.
func labelsOf(page string, names map[string]string) map[string][]string {
	labels := make(map[string][]string)
	for _, m := range regexp.MustCompile(`(?m)^(postern_\w+)(?:\{(.*)\})? `).FindAllStringSubmatch(page, -1) {
		name := m[1]
		if names[name] == "series" {
			name = name[:strings.LastIndexByte(name, '_')]
		}
		list := []string{}
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			if label[1] != "le" {
				list = append(list, label[1])
			}
		}
		slices.Sort(list)
		labels[name] = list
	}
	return labels
}

// dashboardHasData asks Prometheus' own engine each question of the dashboard about a
// node whose page never changes, and wants an answer.
func dashboardHasData(t *testing.T, page string, names map[string]string) {
	questions := dashboardQueries(t)
	if len(questions) < 40 {
		t.Fatalf("only %d queries found", len(questions))
	}
	var file bytes.Buffer
	file.WriteString("evaluation_interval: 15s\ntests:\n  - interval: 15s\n    input_series:\n")
	for _, series := range append(series(t, page), `up{} 1`) {
		name, value, _ := cutLast(series, " ")
		fmt.Fprintf(&file, "      - series: %s\n        values: '%sx60'\n", quote(withLabels(name)), value)
	}
	file.WriteString("    promql_expr_test:\n")
	for _, q := range questions {
		for _, name := range metricsOf(t, q) {
			if _, there := names[name]; !there && name != "up" {
				t.Errorf("%s is on no page: %s", name, q)
			}
		}
		// A question without an answer counts nothing, and that is no sample.
		fmt.Fprintf(&file, "      - expr: %s\n        eval_time: 10m\n        exp_samples: [{labels: '{}', value: 1}]\n", quote("count("+q+") > bool 0"))
	}
	path := filepath.Join(t.TempDir(), "dashboard_test.yml")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "test", "rules", path)
}

// dashboardQueries are the queries of all panels, their variables filled in.
func dashboardQueries(t *testing.T) (list []string) {
	var dashboard struct {
		Panels []struct {
			Title, Description, Type string
			Targets                  []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "../configs/grafana/postern.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$job", "postern", "$instance", ".*", "$__rate_interval", "5m")
	for _, p := range dashboard.Panels {
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("panel %q needs a description and a query", p.Title)
		}
		for _, target := range p.Targets {
			q := fill.Replace(target.Expr)
			if strings.Contains(q, "$") {
				t.Errorf("a variable is left: %s", q)
			}
			list = append(list, q)
		}
	}
	return list
}

// series are the lines of a page that have values.
func series(t *testing.T, page string) (list []string) {
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	if len(list) < 100 {
		t.Fatalf("only %d series", len(list))
	}
	return list
}

// withLabels adds the labels that a scrape adds.
func withLabels(series string) string {
	const scraped = `job="postern",instance="relay1:5878"`
	name, labels, ok := strings.Cut(series, "{")
	if !ok || labels == "}" {
		return name + "{" + scraped + "}"
	}
	return name + "{" + scraped + "," + labels
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func cutLast(s, sep string) (before, after string, ok bool) {
	at := strings.LastIndex(s, sep)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(sep):], true
}

// alertsAreKnown holds the names in the rules to the page.
func alertsAreKnown(t *testing.T, names map[string]string) {
	expr := regexp.MustCompile(`(?m)^ +expr: (>-\n(?: {10,}.*\n)+|.*)`)
	found := expr.FindAllStringSubmatch(read(t, "../configs/prometheus/alerts.yml"), -1)
	if len(found) < 20 {
		t.Fatalf("only %d expressions found", len(found))
	}
	ofAccounts := read(t, "../docs/oauth.md") // of which this node has none
	for _, m := range found {
		q := strings.TrimPrefix(m[1], ">-")
		metrics := metricsOf(t, q)
		if len(metrics) == 0 {
			t.Errorf("no metric in %s", q)
		}
		for _, name := range metrics {
			if _, there := names[name]; !there && name != "up" && !strings.Contains(ofAccounts, "`"+name+"`") {
				t.Errorf("%s is on no page: %s", name, q)
			}
		}
	}
}

// Words of PromQL that are no metrics, where no parenthesis follows.
var promqlWords = strings.Fields("and or unless bool")

// metricsOf finds the metrics that an expression reads. It knows as much of the grammar
// as that needs: strings, label matchers, lists of labels, ranges, numbers, functions;
// at anything else the test fails.
func metricsOf(t *testing.T, expr string) (names []string) {
	t.Helper()
	token := regexp.MustCompile(`^(?:\s+|\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}|\[[0-9a-z:]+\]` + // space, matchers, ranges
		`|(?:by|without|on|ignoring|group_left|group_right)\s*\([a-z_, ]*\)` + // lists of labels
		`|offset\s+[0-9]+[smhdw]|[0-9.]+(?:e[0-9]+)?|[-+*/(),]|[<>=!]=?|[a-zA-Z_:][a-zA-Z0-9_:]*)`)
	word := regexp.MustCompile(`^[a-zA-Z_:]`)
	for rest := expr; rest != ""; {
		tok := token.FindString(rest)
		if tok == "" {
			t.Fatalf("the test does not understand %q in %q", rest, expr)
		}
		rest = rest[len(tok):]
		after := strings.TrimLeft(rest, " \n")
		switch {
		case !word.MatchString(tok), strings.HasSuffix(tok, ")"), strings.HasPrefix(tok, "offset "):
		case slices.Contains(promqlWords, tok):
		case strings.HasPrefix(after, "("), strings.HasPrefix(after, "by "), strings.HasPrefix(after, "by("): // a function
		default:
			names = append(names, tok)
		}
	}
	return names
}

// TestMetricsOf shows that the names are found, and that what is unknown is not passed over.
func TestMetricsOf(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]string{
		`sum by (le, a) (rate(x_bucket{a="b) c", d=~"$"}[5m])) / on (instance) y > bool 0.5 and z == 1e9`: "x_bucket y z",
		`histogram_quantile(0.99, sum by (le) (rate(x[5m])))`:                                             "x",
		`x unless y offset 1h > 0`:         "x y",
		`min(a) - time() < 3 * 86400 or b`: "a b",
	} {
		if got := strings.Join(metricsOf(t, expr), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
