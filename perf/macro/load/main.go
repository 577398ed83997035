// Load over keep-alive connections, from one thread with epoll: closed loop (-n) or open loop (-rate, -seconds).
//
// In the open loop the moments at which requests are due come from a Poisson process with a fixed seed, made before
// anybody answers. A request that finds no free connection waits, and its latency counts from when it was due: a
// server that stalls is charged for all that it kept waiting (no coordinated omission). The loop spins, so that the
// load's own clock is never late by a sleep. The result is one JSON object on stdout.
//
// With -hold it says so when it is connected, and waits for a line on stdin, and does the same again behind the result:
// so that the server can be looked at before the first request and after the last one, with all connections open.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/bits"
	"math/rand"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How long after the last request was due one waits for the rest.
const patience = 2 * time.Second

// Histogram counts nanoseconds in buckets of a width that grows with the value: 128 in each power of two, so that
// what is read back is at most 0.8 % too low. 64 powers of two hold any time.
type Histogram struct {
	counts [58 * 128]uint64
	total  uint64
	max    uint64
}

func (histogram *Histogram) add(value time.Duration) {
	nanoseconds := uint64(value)
	if value < 0 {
		nanoseconds = 0
	}
	shift := 0
	if nanoseconds >= 256 {
		shift = bits.Len64(nanoseconds) - 8
	}
	histogram.counts[uint64(shift)*128+nanoseconds>>shift]++
	histogram.total++
	if nanoseconds > histogram.max {
		histogram.max = nanoseconds
	}
}

// The value in µs that this share of all stays within.
func (histogram *Histogram) at(share float64) float64 {
	wanted, seen := uint64(share*float64(histogram.total)), uint64(0)
	for bucket, count := range histogram.counts {
		seen += count
		if seen > wanted {
			return least(bucket)
		}
	}
	return float64(histogram.max) / 1e3
}

// How many values there are from each bucket's least value (in µs) on, without the empty ones.
func (histogram *Histogram) buckets() [][2]float64 {
	var found [][2]float64
	for bucket, count := range histogram.counts {
		if count > 0 {
			found = append(found, [2]float64{least(bucket), float64(count)})
		}
	}
	return found
}

// The least value of a bucket, in µs.
func least(bucket int) float64 {
	shift := 0
	if bucket >= 256 {
		shift = bucket/128 - 1
	}
	return float64(uint64(bucket-shift*128)<<shift) / 1e3
}

type connection struct {
	fd int
	// When the request under way was due; of a free connection, since when it is free.
	since  time.Time
	buffer []byte
	filled int
}

type result struct {
	Requests    int                `json:"requests"`
	Seconds     float64            `json:"seconds"`
	Statuses    map[string]int     `json:"statuses"`
	BodyBytes   int                `json:"body_bytes"`
	Latency     map[string]float64 `json:"latency_us"`
	LateP99     float64            `json:"late_p99_us"`
	Backlog     int                `json:"backlog"`
	Unanswered  int                `json:"unanswered"`
	Connections int                `json:"connections"`
	Histogram   [][2]float64       `json:"histogram"`
}

func main() {
	address := flag.String("connect", "", "unix:PATH or HOST:PORT")
	file := flag.String("requests", "", "each request as its length in four bytes, big-endian, and then itself")
	connections := flag.Int("connections", 32, "kept open during the whole run")
	count := flag.Int("n", 0, "closed loop: so many requests")
	rate := flag.Float64("rate", 0, "open loop: so many requests per second")
	seconds := flag.Float64("seconds", 1, "open loop: for so long")
	hold := flag.Bool("hold", false, "wait for a line on stdin before the first request and before the end")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("load: ")
	runtime.LockOSThread()
	debug.SetGCPercent(-1)

	load := &load{requests: read(*file), statuses: map[string]int{}}
	load.connect(*address, *connections)
	lines := bufio.NewReader(os.Stdin)
	if *hold {
		fmt.Println("connected")
		await(lines)
	}
	if *rate > 0 {
		load.open(*rate, *seconds)
	} else {
		load.closed(*count)
	}
	outcome := result{
		Requests:    int(load.latency.total),
		Seconds:     load.took.Seconds(),
		Statuses:    load.statuses,
		BodyBytes:   load.bodyBytes,
		Latency:     map[string]float64{"max": float64(load.latency.max) / 1e3},
		LateP99:     load.late.at(0.99),
		Backlog:     load.backlog,
		Unanswered:  load.sent - int(load.latency.total) + load.unsent,
		Connections: *connections,
		Histogram:   load.latency.buckets(),
	}
	for name, share := range map[string]float64{"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999} {
		outcome.Latency[name] = load.latency.at(share)
	}
	if err := json.NewEncoder(os.Stdout).Encode(outcome); err != nil {
		log.Fatal(err)
	}
	if *hold {
		await(lines)
	}
}

// Wait for the next line of stdin, which ends with the program that started the load.
func await(lines *bufio.Reader) {
	if _, err := lines.ReadString('\n'); err != nil {
		log.Fatal("stdin has ended: the program that started this load is gone")
	}
}

type load struct {
	requests      [][]byte
	epoll         int
	byFd          map[int32]*connection
	idle          []*connection
	sent, unsent  int
	latency, late Histogram
	statuses      map[string]int
	bodyBytes     int
	took          time.Duration
	backlog       int
	events        [64]syscall.EpollEvent
}

// Every answer brings the next request, on the same connection.
func (load *load) closed(count int) {
	start := time.Now()
	for _, free := range load.idle {
		if load.sent < count {
			load.send(free, time.Now())
		}
	}
	for int(load.latency.total) < count {
		for _, answered := range load.wait(-1) {
			if load.sent < count {
				load.send(answered, time.Now())
			}
		}
	}
	load.took = time.Since(start)
}

// Requests leave when they are due, or as soon after that as a connection is free.
func (load *load) open(rate, seconds float64) {
	draw := rand.New(rand.NewSource(20261101))
	var due []time.Duration
	for at := 0.0; at < seconds; at += draw.ExpFloat64() / rate {
		due = append(due, time.Duration(at*float64(time.Second)))
	}
	start := time.Now()
	end := time.Duration(seconds * float64(time.Second))
	counted := false
	for int(load.latency.total) < len(due) {
		passed := time.Since(start)
		for len(load.idle) > 0 && load.sent < len(due) && due[load.sent] <= passed {
			// The one that is idle longest, so that no server closes one that seems forgotten.
			free := load.idle[0]
			load.idle = load.idle[1:]
			if free.since.IsZero() || free.since.Before(start.Add(due[load.sent])) {
				// Nothing but the load itself can have held it up.
				load.late.add(passed - due[load.sent])
			}
			load.send(free, start.Add(due[load.sent]))
		}
		for _, answered := range load.wait(0) {
			answered.since = time.Now()
			load.idle = append(load.idle, answered)
		}
		if !counted && passed >= end {
			counted = true
			load.backlog = len(due) - int(load.latency.total)
		}
		if passed > end+patience {
			load.unsent = len(due) - load.sent
			break
		}
	}
	load.took = time.Since(start)
}

func (load *load) send(to *connection, due time.Time) {
	request := load.requests[load.sent%len(load.requests)]
	load.sent++
	to.since = due
	// A request is a kilobyte at most and nothing else is under way: the socket's buffer takes it whole.
	written, err := syscall.Write(to.fd, request)
	if err != nil || written != len(request) {
		log.Fatalf("cannot send: %d of %d bytes, %v", written, len(request), err)
	}
}

// The connections whose answers are complete.
func (load *load) wait(timeoutMs int) []*connection {
	ready, err := syscall.EpollWait(load.epoll, load.events[:], timeoutMs)
	if err == syscall.EINTR {
		return nil
	}
	if err != nil {
		log.Fatalf("cannot wait: %v", err)
	}
	var answered []*connection
	for _, event := range load.events[:ready] {
		from := load.byFd[event.Fd]
		count, err := syscall.Read(from.fd, from.buffer[from.filled:])
		if err == syscall.EAGAIN || err == syscall.EINTR {
			continue
		}
		if err != nil || count == 0 {
			log.Fatalf("the server closed a connection (%v)", err)
		}
		from.filled += count
		size, status, body := answer(from.buffer[:from.filled])
		if size == 0 {
			continue
		}
		if size != from.filled {
			log.Fatal("the server sent more than one answer to one request")
		}
		from.filled = 0
		load.latency.add(time.Since(from.since))
		load.statuses[status]++
		load.bodyBytes += body
		answered = append(answered, from)
	}
	return answered
}

// The size, status and body length of the answer; 0 when it is not complete.
func answer(data []byte) (int, string, int) {
	head := bytes.Index(data, []byte("\r\n\r\n"))
	if head < 0 {
		return 0, "", 0
	}
	if len(data) < 12 || !bytes.HasPrefix(data, []byte("HTTP/1.1 ")) {
		log.Fatalf("not an answer of HTTP/1.1: %q", data)
	}
	status := string(data[9:12])
	body := 0
	if status != "204" {
		body = contentLength(data[:head+2])
	}
	if len(data) < head+4+body {
		return 0, "", 0
	}
	return head + 4 + body, status, body
}

func contentLength(head []byte) int {
	for len(head) > 0 {
		end := bytes.IndexByte(head, '\n')
		line := head[:end]
		head = head[end+1:]
		const name = "content-length:"
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			length, err := strconv.Atoi(strings.TrimSpace(string(line[len(name):])))
			if err != nil {
				log.Fatalf("not a length: %q", line)
			}
			return length
		}
	}
	log.Fatal("an answer without Content-Length")
	return 0
}

func (load *load) connect(address string, count int) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		log.Fatal(err)
	}
	load.epoll, load.byFd = epoll, map[int32]*connection{}
	for made := 0; made < count; made++ {
		fd, err := dial(address)
		if err != nil {
			log.Fatalf("cannot connect to %s: %v", address, err)
		}
		opened := &connection{fd: fd, buffer: make([]byte, 64*1024)}
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
		if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
			log.Fatal(err)
		}
		load.byFd[int32(fd)] = opened
		load.idle = append(load.idle, opened)
	}
}

// A socket of our own: Go's would be in the runtime's poller as well.
func dial(address string) (int, error) {
	family, where := syscall.AF_INET, syscall.Sockaddr(nil)
	if strings.HasPrefix(address, "unix:") {
		family, where = syscall.AF_UNIX, &syscall.SockaddrUnix{Name: strings.TrimPrefix(address, "unix:")}
	} else {
		resolved, err := net.ResolveTCPAddr("tcp4", address)
		if err != nil {
			return 0, err
		}
		place := &syscall.SockaddrInet4{Port: resolved.Port}
		copy(place.Addr[:], resolved.IP.To4())
		where = place
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := syscall.Connect(fd, where); err != nil {
		return 0, err
	}
	if family == syscall.AF_INET {
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
			return 0, err
		}
	}
	return fd, syscall.SetNonblock(fd, true)
}

func read(path string) [][]byte {
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var requests [][]byte
	for len(data) >= 4 {
		size := binary.BigEndian.Uint32(data)
		if uint64(len(data)) < 4+uint64(size) {
			log.Fatal(fmt.Sprintf("%s is cut short", path))
		}
		requests = append(requests, data[4:4+size])
		data = data[4+size:]
	}
	if len(requests) == 0 {
		log.Fatalf("%s has no requests", path)
	}
	return requests
}
