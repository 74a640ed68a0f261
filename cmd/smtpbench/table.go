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

// printTable writes the medians and, where several servers had the same workload, the
// ratios of the first one to each other.
func printTable(w io.Writer, all []series) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "workload\tserver\t")
	for _, c := range columns {
		fmt.Fprint(tw, c.head, "\t")
	}
	fmt.Fprintln(tw)
	first := 0 // of its workload
	for i, s := range all {
		if s.Workload != all[first].Workload {
			first = i
		}
		fmt.Fprintf(tw, "%s\t%s\t", s.Workload, s.Server)
		for _, c := range columns {
			fmt.Fprint(tw, cell(c, s.median(c.value)), "\t")
		}
		fmt.Fprintln(tw)
		if i > first {
			printRatios(tw, all[first], s)
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
// the first: the medians of the ratios of rounds that followed each other, which what else the
// machine did disturbs least.
func printRatios(w io.Writer, first, second series) {
	fmt.Fprintf(w, "\tratio\t")
	parts := second.median(func(r round) float64 { return r.CPU["postgres"] }) > 0 // both are Postern
	for i, c := range columns {
		switch {
		case i < 2:
			fmt.Fprintf(w, "%.2f ×\t", ratio(first, second, c.value))
		case c.head == "CPU ms", parts && (c.head == "of it server" || c.head == "PostgreSQL"):
			fmt.Fprintf(w, "%.2f ×\t", ratio(second, first, c.value))
		default:
			fmt.Fprint(w, "\t")
		}
	}
	fmt.Fprintln(w)
}

// ratio is the median of a's values divided by b's.
func ratio(a, b series, value func(round) float64) float64 {
	n := 0
	return series{Rounds: a.Rounds}.median(func(r round) float64 {
		n++
		return value(r) / value(b.Rounds[n-1])
	})
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
