// The job behind Go's own net/http.
package main

import (
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"adcoreperf/gojob"
)

// Header values are put in as they are, without another slice for each answer.
var (
	contentType  = []string{"application/json"}
	cacheControl = []string{"no-store"}
	noSniff      = []string{"nosniff"}
	bodies       = sync.Pool{New: func() any { body := make([]byte, 0, 2048); return &body }}
)

func main() {
	job := gojob.FromEnvironment()
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/decision", func(writer http.ResponseWriter, request *http.Request) {
		asked := request.Header
		pooled := bodies.Get().(*[]byte)
		body, filled := job.Answer((*pooled)[:0], request.URL.RawQuery, asked.Get("User-Agent"),
			asked.Get("Accept-Language"), asked.Get("X-Country"), asked.Get("X-Real-Ip"))
		if filled {
			header := writer.Header()
			header["Content-Type"] = contentType
			header["Cache-Control"] = cacheControl
			header["X-Content-Type-Options"] = noSniff
			writer.Write(body)
		} else {
			writer.WriteHeader(http.StatusNoContent)
		}
		*pooled = body
		bodies.Put(pooled)
	})
	listener, err := net.Listen("unix", os.Getenv("JOB_SOCKET"))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, mux))
}
