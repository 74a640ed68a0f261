package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// median of the rounds' values.
func (s series) median(value func(round) float64) float64 {
	values := make([]float64, 0, len(s.Rounds))
	for _, r := range s.Rounds {
		values = append(values, value(r))
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// A column is one figure of the table.
type column struct {
	head  string
	value func(round) float64
	print string // format of the value
}

var columns = []column{
	{"end to end/s", func(r round) float64 { return r.Rate }, "%.0f"},
	{"accepted/s", func(r round) float64 { return r.AcceptRate }, "%.0f"},
	{"p50 ms", func(r round) float64 { return float64(r.P50) * 1000 }, "%.1f"},
	{"p99 ms", func(r round) float64 { return float64(r.P99) * 1000 }, "%.1f"},
	{"max ms", func(r round) float64 { return float64(r.Max) * 1000 }, "%.1f"},
	{"CPU ms", round.cpu, "%.3f"},
	{"of it server", func(r round) float64 { return r.CPU["server"] }, "%.3f"},
	{"PostgreSQL", func(r round) float64 { return r.CPU["postgres"] }, "%.3f"},
	{"peak MiB", func(r round) float64 { return float64(r.Peak) / (1 << 20) }, "%.0f"},
}

// printTable writes the medians and, where two servers had the same workload, the
// ratio of the first one to the second.
func printTable(w io.Writer, all []series) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "workload\tserver\t")
	for _, c := range columns {
		fmt.Fprint(tw, c.head, "\t")
	}
	fmt.Fprintln(tw)
	for i, s := range all {
		fmt.Fprintf(tw, "%s\t%s\t", s.Workload, s.Server)
		for _, c := range columns {
			fmt.Fprint(tw, cell(c, s.median(c.value)), "\t")
		}
		fmt.Fprintln(tw)
		if i > 0 && all[i-1].Workload == s.Workload {
			printRatios(tw, all[i-1], s)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return printLegend(w, all)
}

// cell is empty where a server has no such figure.
func cell(c column, value float64) string {
	if value == 0 {
		return "-"
	}
	if c.print == "%.0f" && value < 100 {
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf(c.print, value)
}

// printRatios compares the rates and the CPU time, each so that more is better for
// the first.
func printRatios(w io.Writer, first, second series) {
	fmt.Fprintf(w, "\tratio\t")
	for i, c := range columns {
		a, b := first.median(c.value), second.median(c.value)
		switch {
		case i < 2 && b > 0:
			fmt.Fprintf(w, "%.1f ×\t", a/b)
		case c.head == "CPU ms" && a > 0:
			fmt.Fprintf(w, "%.1f ×\t", b/a)
		default:
			fmt.Fprint(w, "\t")
		}
	}
	fmt.Fprintln(w)
}

func printLegend(w io.Writer, all []series) error {
	seen := make(map[string]bool)
	for _, s := range all {
		if seen[s.Workload] {
			continue
		}
		seen[s.Workload] = true
		if _, err := fmt.Fprintf(w, "%s: %s; median of %d rounds of %d messages\n",
			s.Workload, s.what, len(s.Rounds), s.shape.connections*s.shape.messages*s.shape.passes); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, "Rates are messages/s, CPU is for each message; a ratio above 1 is better for the first.")
	return err
}
