// A packet to the host is as long as its header says, never crosses 4 KiB, never exceeds 256 bytes of payload beyond
// what was planned, and a beat once shown stays until it is taken.
//
// block: transmitter
// mode: prove
// depth: 3
// mutant: a write is announced a line longer than it is
//   length = ((lines) & 7'h7f) << 32'h4; => length = (((lines) & 7'h7f) << 32'h4) + 32'h10;
// mutant: a packet with four DWs of header ends two DWs early
//   at_end = left$q <= 32'h2; => at_end = left$q <= 32'h4;
// mutant: a beat that isn't taken is overwritten
//   free = ~flags$q[32'h0] | ready; => free = 1'b1;

reg [114:0] last_completion; reg last_completion_on = 0;
reg [69:0] last_descriptor; reg last_descriptor_on = 0;
reg [63:0] last_address; reg last_message_on = 0;
reg last_shown = 0; reg [63:0] last_data; reg last_end; reg [7:0] last_keep;

// The packet as the host sees it: DWs taken of how many, its header's fields.
reg [7:0] pos = 0;
reg [7:0] total = 0;
reg four_dws = 0;
reg is_write = 0;
reg [9:0] dws = 0;

wire take = valid & ready;
wire first = pos == 0;
wire [7:0] after = pos + (keep == 8'hFF ? 2 : 1);
wire now_four = first ? data[29] : four_dws;
wire now_write = first ? data[30] & data[31:25] != 7'h25 : is_write;
wire [9:0] now_dws = first ? data[9:0] : dws;
wire [7:0] first_total = (data[29] ? 4 : 3) + (data[30] ? data[7:0] : 0);
wire [7:0] now_total = first ? first_total : total;
wire [31:0] address = now_four ? data[63:32] : data[31:0];
// Where the packet stands once the beat that is shown has been taken.
wire [7:0] emitted = valid ? (last ? 0 : after) : pos;
wire header_four = valid ? now_four : four_dws;
wire [9:0] header_dws = valid ? now_dws : dws;
wire [7:0] header_total = valid ? now_total : total;
wire source_four = source$q == 4 ? descriptor[63:32] != 0 : source$q == 2 ? message_address[63:32] != 0 : 0;
wire [2:0] planned = descriptor[66:64];

always @(posedge clock) begin
    last_completion <= completion;
    last_completion_on <= completion_filled & !completion_pop;
    last_descriptor <= descriptor;
    last_descriptor_on <= descriptor_filled & !descriptor_pop;
    last_address <= message_address;
    last_message_on <= (message_begun | (source$q == 2 & step$q != Step$Start)) & !message_sent;
    last_shown <= valid & !ready;
    last_data <= data;
    last_end <= last;
    last_keep <= keep;
    if (take) begin
        pos <= last ? 0 : after;
        total <= now_total;
        four_dws <= now_four;
        is_write <= now_write;
        dws <= now_dws;
    end

    // Environment: what waits to be sent stays until it is.
    assume (!last_completion_on || (completion_filled && completion == last_completion));
    assume (!last_descriptor_on || (descriptor_filled && descriptor == last_descriptor));
    assume (!last_message_on || message_address == last_address);
    // A completion has one or two DWs, a refusal none; a message is aligned.
    assume (!completion_filled || (completion[114] ? completion[113:112] == 0 : completion[113:112] == 1 || completion[113:112] == 2));
    assume (message_address[1:0] == 0);
    // What planner.sv proves of a write.
    assume (!descriptor_filled || planned <= 4);
    assume (!descriptor_filled || planned == 0 || (descriptor[5:0] == 0 && descriptor[11:6] + planned <= 64));
    assume (!descriptor_filled || planned != 0 || descriptor[2:0] == 0);

    // The packet's state, inside and outside.
    assert (step$q <= Step$Rest);
    assert ((step$q == Step$Start) == (emitted == 0));
    if (step$q != Step$Start) begin
        assert (source$q == 1 || source$q == 2 || source$q == 4);
        assert (source$q != 1 || completion_filled);
        assert (source$q != 4 || descriptor_filled);
        assert (header_four == source_four);
        assert (header_total > emitted && header_total <= 68);
        assert (source$q != 4 || header_dws == (planned == 0 ? 2 : planned * 16));
        assert (source$q != 2 || header_dws == 1);
    end
    if (step$q == Step$Address) begin
        assert (emitted == 2);
        assert (header_total == 2 + left$q + (header_four ? 2 : 1));
        assert (!header_four || left$q != 0);
        assert (valid ? now_write == (source$q != 1) : is_write == (source$q != 1));
    end
    if (step$q == Step$Data) assert (header_four && emitted >= 4 && header_total - emitted == left$q);
    if (step$q == Step$Rest) assert (left$q[0]);
    if (step$q == Step$Address && left$q > 1) assert (!left$q[0]);
    if (step$q == Step$Rest) assert (!header_four && emitted >= 4 && header_total - emitted == left$q);
    assert (pos == 0 || !is_write || total == (four_dws ? 4 : 3) + dws);

    // What the host sees.
    assert (!last_shown || (valid && data == last_data && last == last_end && keep == last_keep));
    if (valid) begin
        assert (keep == 8'hFF || (keep == 8'h0F && last));
        assert (last == (after == now_total));
        assert (!(first && now_write) || (now_dws >= 1 && now_dws <= 64));
        assert (!(pos == 2 && now_write) || {1'b0, address[11:2]} + now_dws <= 1024);
    end
end
