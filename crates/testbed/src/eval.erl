%% Loaded by the private broker at its start: evaluates Erlang expressions that come over a Unix socket (length in
%% four bytes, then the text), so that a test need not wait a second or two for each rabbitmqctl.
spawn(fun() ->
    Path = "@SOCKET@",
    _ = file:delete(Path),
    {ok, Listener} = gen_tcp:listen(0, [{ifaddr, {local, Path}}, binary, {packet, 4}, {active, false}, {backlog, 64}]),
    Evaluate = fun(Text) ->
        try
            {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
            {ok, Expressions} = erl_parse:parse_exprs(Tokens),
            {value, Value, _} = erl_eval:exprs(Expressions, erl_eval:new_bindings()),
            ["ok ", io_lib:format("~tp", [Value])]
        catch
            Class:Reason -> ["error ", io_lib:format("~tp", [{Class, Reason}])]
        end
    end,
    Serve = fun Serve(Socket) ->
        case gen_tcp:recv(Socket, 0) of
            {ok, Text} ->
                ok = gen_tcp:send(Socket, unicode:characters_to_binary(Evaluate(Text))),
                Serve(Socket);
            {error, _} ->
                gen_tcp:close(Socket)
        end
    end,
    Accept = fun Accept() ->
        {ok, Socket} = gen_tcp:accept(Listener),
        Server = spawn(fun() -> receive go -> Serve(Socket) end end),
        ok = gen_tcp:controlling_process(Socket, Server),
        Server ! go,
        Accept()
    end,
    Accept()
end).
